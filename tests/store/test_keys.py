from __future__ import annotations

from tunesmith.store import Store
from tunesmith.store.keys import Entry


def test_a_key_opens_its_project_until_it_is_revoked(database: str) -> None:
    with Store(database) as store:
        key, secret = store.keys.make("ci", project="shop", role="read")
        again, other = store.keys.make("laptop", project="shop")
        assert key.project == again.project != "default"
        assert store.keys.find(secret) == key
        assert store.keys.find(other) == again
        assert store.keys.find("sk-tune-wrong") is None
        assert store.keys.revoke(key.id)
        assert not store.keys.revoke(key.id)
        assert store.keys.find(secret) is None
        assert [item.id for item in store.keys.list()] == [again.id, key.id]
        assert store.keys.projects() == {"default": "default", key.project: "shop"}


def test_the_secret_itself_is_not_kept(database: str) -> None:
    import sqlalchemy as sa

    with Store(database) as store:
        _, secret = store.keys.make("ci")
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM keys")).all()
    engine.dispose()
    assert secret not in str(rows)


def test_the_audit_log_is_read_newest_first(database: str) -> None:
    with Store(database) as store:
        lines = [Entry(float(at), "default", None, "file.delete", f"file-{at}") for at in range(3)]
        for line in lines:
            store.keys.note(line)
        assert store.keys.log(2) == lines[:0:-1]
