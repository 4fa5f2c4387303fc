from pathlib import Path

import pytest

from vmd.model.errors import Refused
from vmd.model.parameter import Parameter, ParameterType
from vmd.model.template import Template
from vmd.model.workspace import Resources
from vmd.orchestrator.parameters import fill
from vmd.orchestrator.template_files import BrokenTemplate, read_template
from vmd.orchestrator.templates import Catalogue

FULL = """
name = "Web"
description = "Our web stack."
recipe = '''
FROM {{base}}
RUN apt-get install -y postgresql-client-{{postgres}} x={{version}}
'''
env = { GREETING = "Hello, {{who}} and {{ who }}", PLAIN = "x" }
ports = [8080]
provisioning = ["echo {{who}} >who.txt", "true"]
ttl_seconds = 86400
idle_timeout_seconds = 600
plugins = ["redis"]

[resources]
memory_mb = 2048

[parameters.who]
description = "Whom to greet."
max_length = 80

[parameters.postgres]
type = "integer"
default = 15.0
choices = [13, 15]

[parameters.version]
default = "1.0"
"""


def write(directory: Path, text: str, name: str = "web.toml") -> Path:
    path = directory / name
    path.write_text(text, "utf-8")
    return path


def test_a_template_says_all_it_may(tmp_path: Path) -> None:
    template = read_template(write(tmp_path, FULL), "base:1", Resources(cpus=2), {"redis"})
    assert (template.id, template.name, template.plugins) == ("web", "Web", ("redis",))
    assert (template.resources.cpus, template.resources.memory_mb) == (2, 2048)
    assert template.recipe is not None
    assert template.recipe.startswith("FROM base:1\n")
    assert template.parameters["postgres"] == Parameter(
        type=ParameterType.INTEGER, default=15, choices=(13, 15)
    )


def test_parameters_fill_a_template(tmp_path: Path) -> None:
    template = read_template(write(tmp_path, FULL), "base:1", Resources(), None)
    hostile = "'; rm -rf / #\n$(id) {{version}}"
    filled = fill(template, {"who": hostile, "postgres": 13})
    assert filled.parameters == {"who": hostile, "postgres": 13, "version": "1.0"}
    assert filled.env == {
        "GREETING": f"Hello, {hostile} and {hostile}",
        "PLAIN": "x",
        "VMD_PARAM_WHO": hostile,
        "VMD_PARAM_POSTGRES": "13",
        "VMD_PARAM_VERSION": "1.0",
    }
    assert filled.provisioning == ('echo "${VMD_PARAM_WHO}" >who.txt', "true")
    assert filled.recipe == "FROM base:1\nRUN apt-get install -y postgresql-client-13 x=1.0\n"
    assert filled.image != fill(template, {"who": "x"}).image
    assert fill(template, {"who": "x"}).image == template.image
    assert fill(template, {"who": "y"}).image == template.image


@pytest.mark.parametrize(
    ("given", "pointers"),
    [
        ({}, ["/parameters/who"]),
        ({"who": 1}, ["/parameters/who"]),
        ({"who": None}, ["/parameters/who"]),
        ({"who": "x" * 81}, ["/parameters/who"]),
        ({"who": "x", "postgres": 14}, ["/parameters/postgres"]),
        ({"who": "x", "a/b~c": 1}, ["/parameters/a~1b~0c"]),
        ({"who": "x", "version": "1\nRUN id"}, ["/parameters/version"]),
        ({"who": "x", "version": "1; id"}, ["/parameters/version"]),
        (
            {"nonesuch": 1, "version": "-o"},
            ["/parameters/nonesuch", "/parameters/who", "/parameters/version"],
        ),
    ],
)
def test_wrong_parameters_are_refused_with_their_place(
    tmp_path: Path, given: dict[str, object], pointers: list[str]
) -> None:
    template = read_template(write(tmp_path, FULL), "base:1", Resources(), None)
    with pytest.raises(Refused) as refusal:
        fill(template, given)
    assert [error.pointer for error in refusal.value.errors] == pointers


def test_without_parameters_nothing_is_a_placeholder() -> None:
    lines = ("echo '{{name}}'", "echo {{name}}")
    template = Template(id="x", name="X", image="x:1", recipe="RUN {{name}}", provisioning=lines)
    filled = fill(template, {})
    assert (filled.image, filled.recipe, filled.provisioning) == ("x:1", "RUN {{name}}", lines)


def test_a_value_that_makes_a_variable_too_long_is_refused(tmp_path: Path) -> None:
    text = f'env = {{ X = "{"{{x}}" * 4}" }}\n[parameters.x]\nmax_length = 10000\n'
    template = read_template(write(tmp_path, text), "base:1", Resources(), None)
    with pytest.raises(Refused, match="the variable X longer than 32768"):
        fill(template, {"x": "y" * 9000})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("= nonsense", r"\(at line 1, column 1\)"),
        ('name = "x"\nname = "y"\n', r"\(at line 2"),
        ("x = 1", "^/x: is not known here"),
        ("ports = [99999]", "^/ports/0: must be at most 65535"),
        ('env = { "a b" = "x" }', "^/env"),
        ('image = "x"\nrecipe = "FROM x"', "^/recipe: is one too many beside image"),
        ('image = "../x"', "^/image: must be the name of an image"),
        ('plugins = ["redis", "none"]', "^/plugins/1: 'none' is unknown; there are: redis"),
        ('env = { A = "{{typo}}" }', r"^/env/A: has \{\{typo\}\}"),
        ('env = { A = "{{base}}" }', r"^/env/A: has \{\{base\}\}"),
        ('provisioning = ["true", "echo {{typo}}"]', r"^/provisioning/1: has \{\{typo\}\}"),
        ("provisioning = [\"echo '{{x}}'\"]\n[parameters.x]", "^/provisioning/0: .* in single quotes"),
        ('recipe = "FROM {{bse}}"', r"^/recipe: has \{\{bse\}\}.*known here are: \{\{base\}\}"),
        ('[parameters.Big]\ndefault = "x"', "^/parameters/Big: is no name for a parameter"),
        ('[parameters.base]\ndefault = "x"', "^/parameters/base: is no name"),
        ('[parameters.x]\ntype = "text"', "^/parameters/x/type: must be one of string, integer"),
        ("[parameters.x]\nrequired = true", "^/parameters/x/required: is not known here"),
        ('[parameters.x]\ntype = "integer"\ndefault = "1"', "^/parameters/x/default: must be a whole number"),
        ('[parameters.x]\ntype = "number"\ndefault = nan', "^/parameters/x/default: must be a number"),
        (
            '[parameters.x]\ntype = "integer"\ndefault = 5\nmaximum = 4',
            "^/parameters/x/default: must be at most 4",
        ),
        ('[parameters.x]\ntype = "integer"\nminimum = 5\nmaximum = 4', "^/parameters/x/maximum: is below"),
        ("[parameters.x]\nminimum = 5", "^/parameters/x/minimum: does not fit the type string"),
        ('[parameters.x]\ntype = "boolean"\nchoices = [true]', "^/parameters/x/choices: does not fit"),
        ('[parameters.x]\npattern = "("', "^/parameters/x/pattern: is no regular expression"),
        ('[parameters.x]\npattern = "a"\nchoices = ["a", "b"]', "^/parameters/x/choices/1: must match a"),
        ('[parameters.x]\nchoices = ["a"]\ndefault = "b"', "^/parameters/x/default: must be one of a"),
        (
            'recipe = "FROM {{x}}"\n[parameters.x]\ndefault = "a b"',
            "^/parameters/x/default: goes into the recipe",
        ),
        (
            'recipe = "FROM {{x}}"\n[parameters.x]\nchoices = ["a", "-b"]',
            "^/parameters/x/choices/1: goes into",
        ),
        ("[resources]\nmemory_mb = 1", "^/resources/memory_mb: must be at least 16"),
        ("ttl_seconds = 1", "^/ttl_seconds: must be at least 60"),
        (f'description = "{"x" * 300_000}"', "^it is larger than 256 KiB"),
    ],
)
def test_what_is_wrong_with_a_template_is_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(BrokenTemplate, match=why):
        read_template(write(tmp_path, text), "base:1", Resources(), {"redis"})


def test_what_is_no_text_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b'name = "\xff"')
    (tmp_path / "directory.toml").mkdir()
    (tmp_path / "dangling.toml").symlink_to("nowhere")
    (tmp_path / "my template.toml").write_text("")
    for path in tmp_path.iterdir():
        with pytest.raises(BrokenTemplate):
            read_template(path, "base:1", Resources(), None)


async def test_the_built_in_templates_are_all_there(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, "base:1", Resources())
    await catalogue.refresh()
    assert sorted(catalogue.templates) == ["base", "go", "java", "node", "python", "rust"]
    assert catalogue.broken == {}
    base = catalogue.resolve(None)
    assert (base.id, base.image, base.recipe) == ("base", "base:1", None)
    python = catalogue.resolve("python")
    assert python.image.startswith("vmd-template:python-")
    other = Catalogue(tmp_path, "base:2", Resources())
    await other.refresh()
    assert other.resolve("python").image != python.image


async def test_others_build_on_what_needs_no_parameters(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[parameters.must]\n")
    (tmp_path / "go.toml").write_text("broken")
    (tmp_path / "web.toml").write_text('env = { A = "{{a}}" }\n[parameters.a]\ndefault = "x"\n')
    catalogue = Catalogue(tmp_path, "base:1", Resources())
    await catalogue.refresh()
    assert catalogue.templates["base"].parameters == {}
    assert catalogue.templates["go"].image.startswith("vmd-template:go-")
    assert catalogue.templates["web"].env == {"A": "x", "VMD_PARAM_A": "x"}
    assert catalogue.resolve("base").parameters != {}
    assert catalogue.find("go") is None
