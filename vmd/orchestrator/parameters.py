"""From a template and the parameters of a request to what a workspace is made from."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from attrs import evolve, frozen

from vmd.model.errors import ErrorCode, FieldError, Refused, invalid_value
from vmd.model.parameter import Unacceptable, Value, require_plain, text_of
from vmd.model.structuring import escape_step
from vmd.model.template import Template
from vmd.orchestrator.placeholders import names_in, replace, shell_line, variable_of

IMAGE_REPOSITORY = "vmd-template"
DIGEST_CHARACTERS = 16
MAX_ENV_VALUE_CHARACTERS = 32768
MAX_SHOWN_CHARACTERS = 100  # of a name that is unknown
MAX_ERRORS = 20


@frozen(kw_only=True)
class Filled:
    """What a template is with values for its parameters."""

    image: str
    recipe: str | None
    env: dict[str, str]
    provisioning: tuple[str, ...]
    parameters: dict[str, Value]  # all of them, the given values and the defaults


def fill(template: Template, given: Mapping[str, Any]) -> Filled:
    """Return a template with these parameters, and its defaults for the others.

    Raises Refused with every parameter that is unknown, missing or out of its limits.
    """
    parameters = _accept(template, given)
    if not parameters:
        return Filled(
            image=template.image,
            recipe=template.recipe,
            env=dict(template.env),
            provisioning=template.provisioning,
            parameters={},
        )
    texts = {name: text_of(value) for name, value in parameters.items()}
    recipe = None if template.recipe is None else replace(template.recipe, texts)
    env = {name: replace(value, texts) for name, value in template.env.items()}
    for name, value in env.items():
        if len(value) > MAX_ENV_VALUE_CHARACTERS:
            raise invalid_value(
                "/parameters",
                f"make the variable {name} longer than {MAX_ENV_VALUE_CHARACTERS} characters; shorten them",
            )
    return Filled(
        image=template.image if recipe is None else image_name(template.id, recipe),
        recipe=recipe,
        env=env | {variable_of(name): text for name, text in texts.items()},
        provisioning=tuple(shell_line(line) for line in template.provisioning),
        parameters=parameters,
    )


def with_defaults(template: Template) -> Template | None:
    """Return a template as it is where no parameters are given, None for one that needs some."""
    if any(parameter.is_required for parameter in template.parameters.values()):
        return None
    filled = fill(template, {})
    return evolve(
        template,
        image=filled.image,
        recipe=filled.recipe,
        env=filled.env,
        provisioning=filled.provisioning,
        parameters={},
    )


def image_name(template_id: str, recipe: str) -> str:
    """Return the name of what a recipe builds: another recipe is another image."""
    return f"{IMAGE_REPOSITORY}:{template_id}-{sha256(recipe.encode()).hexdigest()[:DIGEST_CHARACTERS]}"


def _accept(template: Template, given: Mapping[str, Any]) -> dict[str, Value]:
    errors = [_unknown(template, name) for name in given if name not in template.parameters]
    in_recipe = names_in(template.recipe or "")
    accepted: dict[str, Value] = {}
    for name, parameter in template.parameters.items():
        if name not in given and not parameter.is_required:
            accepted[name] = parameter.default
            continue
        try:
            if name not in given:
                raise Unacceptable("is missing")
            accepted[name] = parameter.accept(given[name])
            if name in in_recipe:
                require_plain(accepted[name])
        except Unacceptable as error:
            errors.append(FieldError(pointer=f"/parameters/{name}", detail=str(error)))
    if errors:
        said = "; ".join(f"{error.pointer}: {error.detail}" for error in errors[:MAX_ERRORS])
        raise Refused(
            ErrorCode.VALIDATION_FAILED, f"Some parameters are wrong: {said}.", errors=errors[:MAX_ERRORS]
        )
    return accepted


def _unknown(template: Template, name: str) -> FieldError:
    known = ", ".join(template.parameters) or "none"
    return FieldError(
        pointer=f"/parameters/{escape_step(name[:MAX_SHOWN_CHARACTERS])}",
        detail=f"is unknown; the parameters of the template '{template.id}' are: {known}",
    )
