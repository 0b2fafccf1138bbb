"""Who asks: every route learns it from the request, and sees nothing of other projects."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from tunesmith.serve.wire import Refusal
from tunesmith.store.keys import DEFAULT, Role

RANK: dict[Role, int] = {"read": 0, "write": 1, "admin": 2}


@dataclass(frozen=True, slots=True)
class Who:
    """The project of a request, and what its key may do. On loopback no key is asked for."""

    project: str = DEFAULT
    key: str | None = None
    role: Role = "admin"
    request: str | None = None
    """The request's own id, for the logs."""

    def may(self, role: Role) -> None:
        """Refuse what the key is not good for.

        Raises:
            Refusal: 403, naming the role that is needed.
        """
        if RANK[self.role] < RANK[role]:
            raise Refusal(
                f"This API key has the role '{self.role}'; this needs '{role}'.",
                status=403,
                code="insufficient_permissions",
            )


def who(request: Request) -> Who:
    """Who sent the request; the gate has found out."""
    return getattr(request.state, "who", Who())
