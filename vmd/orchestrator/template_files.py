"""Templates as they are written down: TOML files, the built-in ones and those of the team alike.

```toml
# web.toml is the template `web`. Its recipe is the text of a Dockerfile; image = "NAME" may stand in place
# of it, and without either the base image is taken.
name = "Web"
description = "Our web stack."
recipe = '''
FROM {{base}}
RUN apt-get update && apt-get install -y postgresql-client-{{postgres}}
'''
env = { GREETING = "Hello, {{who}}" }
ports = [8080]
provisioning = ["echo {{who}} >who.txt"]
ttl_seconds = 86400               # idle_timeout_seconds, plugins = ["ID"]

[resources]                       # cpus, memory_mb, disk_mb, pids
memory_mb = 2048

[parameters.who]                  # type: string, integer, number or boolean
description = "Whom to greet."    # without a default it must be given
max_length = 80                   # pattern, choices; minimum and maximum of numbers

[parameters.postgres]
type = "integer"
default = 15
choices = [13, 15]
```
"""

import re
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

from attrs import evolve, field, frozen
from msgspec import Meta

from vmd.model.errors import FieldError
from vmd.model.parameter import Parameter, ParameterType, Unacceptable, require_plain, text_of
from vmd.model.structuring import Unstructurable, structure
from vmd.model.template import Template
from vmd.model.workspace import (
    Description,
    Env,
    NewResources,
    Ports,
    Provisioning,
    Resources,
    ShortName,
    TtlSeconds,
)
from vmd.orchestrator.parameters import image_name
from vmd.orchestrator.placeholders import (
    BASE,
    Misplaced,
    may_be_name,
    names_in,
    replace,
    require_known,
    shell_line,
)

MAX_FILE_BYTES = 256 * 1024
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

ImageName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$",
        description="the name of an image, such as debian:bookworm",
    ),
]
_Recipe = Annotated[str, Meta(min_length=1, max_length=65536)]


@frozen(kw_only=True)
class TemplateFile:
    """What a template's file may say."""

    name: ShortName | None = None
    description: Description = ""
    image: ImageName | None = None
    recipe: _Recipe | None = None
    resources: NewResources = field(factory=NewResources)
    env: Env = field(factory=dict)
    ports: Ports = ()
    provisioning: Provisioning = ()
    parameters: Annotated[dict[str, Parameter], Meta(max_length=50)] = field(factory=dict)
    ttl_seconds: TtlSeconds | None = None
    idle_timeout_seconds: TtlSeconds | None = None
    plugins: Annotated[tuple[ShortName, ...], Meta(max_length=50)] = ()


class BrokenTemplate(Exception):
    """A template's file cannot be used; the message says where in it and why."""


def read_template(
    path: Path, base_image: str, resources: Resources, known_plugins: Collection[str] | None
) -> Template:
    """Return the template of a file; raise BrokenTemplate. `known_plugins` is None where all ids are."""
    if re.fullmatch(ID_PATTERN, path.stem) is None:
        raise BrokenTemplate("its name is no id: letters, digits and inner . _ - make one, at most 63")
    try:
        data = tomllib.loads(_read(path))
        file = structure(data, TemplateFile)
    except (OSError, ValueError, Unstructurable) as error:
        raise BrokenTemplate(str(error)) from None
    errors = tuple(_errors(file, known_plugins))
    if errors:
        raise BrokenTemplate(str(Unstructurable(errors)))
    parameters = {name: _canonical(parameter) for name, parameter in file.parameters.items()}
    recipe = None if file.recipe is None else replace(file.recipe, {BASE: base_image})
    defaults = {name: text_of(one.default) for name, one in parameters.items() if not one.is_required}
    return Template(
        id=path.stem,
        name=file.name or path.stem,
        description=file.description,
        image=file.image or base_image
        if recipe is None
        else image_name(path.stem, replace(recipe, defaults)),
        recipe=recipe,
        resources=merge_resources(resources, file.resources),
        env=dict(file.env),
        ports=file.ports,
        provisioning=file.provisioning,
        parameters=parameters,
        ttl_seconds=file.ttl_seconds,
        idle_timeout_seconds=file.idle_timeout_seconds,
        plugins=file.plugins,
    )


def merge_resources(given: Resources, wanted: NewResources | None) -> Resources:
    """Return the wanted resources, with the given ones where it says nothing."""
    if wanted is None:
        return given
    return Resources(
        cpus=given.cpus if wanted.cpus is None else wanted.cpus,
        memory_mb=given.memory_mb if wanted.memory_mb is None else wanted.memory_mb,
        disk_mb=given.disk_mb if wanted.disk_mb is None else wanted.disk_mb,
        pids=given.pids if wanted.pids is None else wanted.pids,
    )


def _read(path: Path) -> str:
    if not path.is_file():
        raise BrokenTemplate("it is not a file")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BrokenTemplate(f"it is larger than {MAX_FILE_BYTES // 1024} KiB")
    return data.decode("utf-8")


def _errors(file: TemplateFile, known_plugins: Collection[str] | None) -> Iterator[FieldError]:
    """Yield what is wrong with a file whose values have the right types."""
    if file.image is not None and file.recipe is not None:
        yield FieldError(pointer="/recipe", detail="is one too many beside image; keep one of them")
    for name, parameter in file.parameters.items():
        yield from _parameter_errors(name, parameter)
    yield from _placeholder_errors(file)
    yield from _recipe_errors(file)
    if known_plugins is not None:
        for place, plugin in enumerate(file.plugins):
            if plugin not in known_plugins:
                listed = ", ".join(sorted(known_plugins)) or "none"
                yield FieldError(
                    pointer=f"/plugins/{place}", detail=f"'{plugin}' is unknown; there are: {listed}"
                )


def _parameter_errors(name: str, parameter: Parameter) -> Iterator[FieldError]:
    pointer = f"/parameters/{name}"
    if not may_be_name(name):
        detail = f"is no name for a parameter: a-z, 0-9 and _ make one, at most 40, and {BASE} is taken"
        yield FieldError(pointer=pointer, detail=detail)
    is_text = parameter.type is ParameterType.STRING
    is_number = parameter.type in (ParameterType.INTEGER, ParameterType.NUMBER)
    fitting = {
        "minimum": is_number,
        "maximum": is_number,
        "pattern": is_text,
        "max_length": is_text,
        "choices": is_text or is_number,
    }
    for limit, fits in fitting.items():
        if getattr(parameter, limit) not in (None, ()) and not fits:
            yield FieldError(pointer=f"{pointer}/{limit}", detail=f"does not fit the type {parameter.type}")
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None and low > high:
        yield FieldError(pointer=f"{pointer}/maximum", detail="is below the minimum")
    try:
        re.compile(parameter.pattern or "")
    except (re.error, RecursionError, OverflowError) as error:
        yield FieldError(pointer=f"{pointer}/pattern", detail=f"is no regular expression: {error}")
        return
    unlisted = evolve(parameter, choices=())
    for place, choice in enumerate(parameter.choices):
        try:
            unlisted.accept(choice)
        except Unacceptable as error:
            yield FieldError(pointer=f"{pointer}/choices/{place}", detail=str(error))
            return
    if parameter.default is not None:
        try:
            parameter.accept(parameter.default)
        except Unacceptable as error:
            yield FieldError(pointer=f"{pointer}/default", detail=str(error))


def _placeholder_errors(file: TemplateFile) -> Iterator[FieldError]:
    texts = [(f"/env/{name}", value, False) for name, value in file.env.items()]
    texts += [(f"/provisioning/{place}", line, True) for place, line in enumerate(file.provisioning)]
    for pointer, text, is_shell in texts:
        try:
            require_known(text, file.parameters)
            if is_shell:
                shell_line(text)
        except Misplaced as error:
            yield FieldError(pointer=pointer, detail=str(error))
    try:
        require_known(file.recipe or "", {BASE, *file.parameters})
    except Misplaced as error:
        yield FieldError(pointer="/recipe", detail=str(error))


def _recipe_errors(file: TemplateFile) -> Iterator[FieldError]:
    """Yield the defaults and choices that may not go into the recipe, though it has a place for them."""
    for name in sorted(names_in(file.recipe or "") & file.parameters.keys()):
        parameter = file.parameters[name]
        for pointer, value in (
            *([("default", parameter.default)] if parameter.default is not None else []),
            *((f"choices/{place}", choice) for place, choice in enumerate(parameter.choices)),
        ):
            try:
                require_plain(value)
            except Unacceptable as error:
                yield FieldError(pointer=f"/parameters/{name}/{pointer}", detail=str(error))


def _canonical(parameter: Parameter) -> Parameter:
    """Return a parameter whose own values are of its type: 3.0 is 3 where it is a whole number."""
    unlisted = evolve(parameter, choices=())
    default = parameter.default
    return evolve(
        parameter,
        choices=tuple(unlisted.accept(choice) for choice in parameter.choices),
        default=None if default is None else parameter.accept(default),
    )
