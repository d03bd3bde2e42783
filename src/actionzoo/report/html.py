"""HTML pages from the package's templates."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_templates() -> Environment:
    """The package's templates, with the filter `thousands`. Values are escaped; an undefined name is an error."""
    templates = Environment(
        loader=PackageLoader("actionzoo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["thousands"] = lambda number: f"{number:,}"
    return templates


def is_web(address: str) -> bool:
    """Whether a page may link to the address: no javascript:, no local file."""
    return address.startswith(("https://", "http://"))
