"""The Jinja environment that chat templates are written for: that of transformers, in Jinja's sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

from .errors import InputError


@lru_cache(maxsize=8)
def compile_template(source: str) -> Any:
    """A chat template, to be rendered with ``strftime_now`` among its variables. Raises InputError."""
    from jinja2 import TemplateError

    try:
        return _environment().from_string(source)
    except (TemplateError, RecursionError, SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        raise InputError(f"the model's chat template does not compile{where}: {error}") from None


@lru_cache(maxsize=8)
def variables_read(source: str) -> frozenset[str]:
    """Names that a template that compiles may read from outside."""
    from jinja2.meta import find_undeclared_variables

    return frozenset(find_undeclared_variables(_environment().parse(source)))


@lru_cache(maxsize=8)
def texts_in(source: str) -> frozenset[str]:
    """The literal texts in the expressions of a template that compiles."""
    from jinja2 import nodes

    tree = _environment().parse(source)
    return frozenset(node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Made at the first use: importing Jinja takes longer than a command's help may."""
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}`` marks an assistant's text for training; its body is rendered as it stands."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Callable[[], str]) -> str:
            return caller()

    class PublicNamespace(Namespace):
        """A namespace whose attributes don't begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            for name in dict(*args[1:], **kwargs):
                _check_name(name)
            Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            Namespace.__setitem__(self, name, value)

    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(
                f"a namespace can't have the attribute {name!r}: it begins with an underscore"
            )

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["namespace"] = PublicNamespace
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML and sorts keys; models are trained on JSON as it is."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
