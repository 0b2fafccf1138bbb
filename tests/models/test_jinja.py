from __future__ import annotations

import jinja2
import pytest

from tunesmith.errors import ModelError
from tunesmith.models.jinja import compiled


def test_tags_filters_and_functions_are_those_of_transformers() -> None:
    source = (
        "{% generation %}{{ x | tojson }}{% endgeneration %}"
        "{% for n in [1, 2, 3] %}{% if n == 2 %}{% continue %}{% endif %}{{ n }}{% endfor %}"
        "{{ strftime_now('%%') }}"
    )
    assert compiled(source).render(x={"ö": "<"}) == '{"ö": "<"}13%'


def test_json_is_written_as_the_template_asks() -> None:
    source = "{{ x | tojson(indent=1, sort_keys=true, separators=(',', ':')) }}"
    assert compiled(source).render(x={"b": 1, "a": 2}) == '{\n "a":2,\n "b":1\n}'


def test_a_template_may_refuse_and_may_not_escape_its_sandbox() -> None:
    with pytest.raises(jinja2.TemplateError, match="no system turn"):
        compiled("{{ raise_exception('no system turn') }}").render()
    with pytest.raises(jinja2.TemplateError):
        compiled("{{ ''.__class__.__mro__[1].__subclasses__() }}").render()
    with pytest.raises(jinja2.TemplateError):
        compiled("{{ x.append(1) }}").render(x=[])


def test_a_template_that_does_not_parse_is_told_from_a_row_that_does_not_render() -> None:
    with pytest.raises(ModelError, match="does not parse"):
        compiled("{% for %}")
