"""HTML pages from the package's templates."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_templates() -> Environment:
    """The package's templates. What comes into them is escaped, and a name that is not given is an error."""
    return Environment(
        loader=PackageLoader("actionzoo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
