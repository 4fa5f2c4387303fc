"""A devcontainer.json as what is done with it, and a line for everything that is not."""

import re
from collections.abc import Collection, Mapping
from posixpath import dirname, normpath
from typing import Any

from attrs import evolve, field, frozen, mutable

from vmd.model.workspace import ENV_NAME_PATTERN, WORKDIR
from vmd.orchestrator.presets.devcontainer.commands import read_commands
from vmd.orchestrator.presets.devcontainer.dockerfile import UnusableDockerfile, make_recipe
from vmd.orchestrator.presets.devcontainer.images import UnusableImage, image_reference
from vmd.orchestrator.presets.devcontainer.resources import read_requirements
from vmd.orchestrator.presets.devcontainer.variables import Unresolvable, Variables
from vmd.orchestrator.presets.documents import Unreadable, parse_json_with_comments, printable
from vmd.orchestrator.presets.tree import Tree, join

MAX_ENV = 100
MAX_PORTS = 50
MAX_ARGUMENTS = 100
MAX_NOTES = 60
MAX_SHOWN_CHARACTERS = 80
_ENV_NAME = re.compile(ENV_NAME_PATTERN)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}|[0-9]{1,9}")
_RESERVED_ENV = "VMD_"
_FILE = "devcontainer.json"

# What is known and not done, with why or what to do; the rest that is not honoured is said to be unknown.
_UNSUPPORTED = {
    "features": "features are not installed; install what they bring in the Dockerfile or postCreateCommand",
    "overrideFeatureInstallOrder": "features are not installed",
    "mounts": "mounts are never made; the workspace's files are all that is kept",
    "workspaceMount": f"the repository always lies at {WORKDIR}",
    "runArgs": "options for the engine are never passed on",
    "privileged": "machines are never privileged",
    "init": "every machine has an init process already",
    "capAdd": "capabilities are never added",
    "securityOpt": "security options are never changed",
    "dockerComposeFile": "Compose files are not read; plugins such as databases run beside a workspace",
    "service": "Compose files are not read",
    "runServices": "Compose files are not read",
    "initializeCommand": "nothing of a repository ever runs on the host",
    "postStartCommand": "nothing runs at every start; run it by hand, or from postCreateCommand once",
    "postAttachCommand": "nothing runs when somebody attaches",
    "appPort": "use forwardPorts",
    "overrideCommand": "a machine's own process is always replaced",
    "shutdownAction": "the workspace's idle_timeout_seconds says when it stops",
    "updateRemoteUserUID": "users keep the numbers that the image gives them",
    "userEnvProbe": "no shell is asked for its environment",
    "secrets": "give them in the request, as env and secrets",
}
_HONOURED = {
    *("$schema", "name", "image", "build", "dockerFile", "context", "containerEnv", "remoteEnv"),
    *("forwardPorts", "onCreateCommand", "updateContentCommand", "postCreateCommand", "remoteUser"),
    *("containerUser", "hostRequirements", "workspaceFolder"),
}
_IGNORED = {"portsAttributes", "otherPortsAttributes", "customizations", "waitFor", "extensions", "settings"}


@frozen(kw_only=True)
class DockerfileBuild:
    """An image to build from the repository."""

    recipe: str
    context: str  # a directory of the repository; '' is its root


@frozen(kw_only=True)
class Devcontainer:
    """What a devcontainer.json asks for and gets."""

    path: str
    name: str | None
    image: str | None = None
    build: DockerfileBuild | None = None
    env: Mapping[str, str] = field(factory=dict)
    ports: tuple[int, ...] = ()
    commands: tuple[str, ...] = ()
    user: str | None = None  # whom the commands run as
    cpus: float | None = None  # at least
    memory_mb: int | None = None
    notes: tuple[str, ...] = ()
    is_broken: bool = False  # nothing of it can be used


def devcontainer_paths(tree: Tree) -> tuple[str, ...]:
    """Return the repository's devcontainer.json files, the one that tools take first."""
    usual = (f".devcontainer/{_FILE}", f".{_FILE}")
    named = sorted(
        path
        for directory in tree.directories
        if directory.startswith(".devcontainer/") and directory.count("/") == 1
        for path in tree.find(directory, _FILE)
    )
    return tuple(path for path in (*usual, *named[:10]) if path in tree.blobs)


def dockerfile_paths(tree: Tree) -> tuple[str, ...]:
    """Return the Dockerfiles that the repository's devcontainer.json files name."""
    found = []
    for path in devcontainer_paths(tree):
        try:
            named = _dockerfile(_properties(tree, path))
            if isinstance(named, str):
                found.append(_inside(dirname(path), named))
        except (Unreadable, Unresolvable):
            continue
    return tuple(path for path in dict.fromkeys(found) if path in tree.blobs)


def read_devcontainer(tree: Tree, path: str, variables: Variables, allowed: Collection[str]) -> Devcontainer:
    """Return what one devcontainer.json asks for; whatever is wrong in it is a note.

    `allowed` are names of this daemon's own images that anybody may use.
    """
    try:
        properties = _properties(tree, path)
    except Unreadable as error:
        return Devcontainer(path=path, name=None, notes=(f"{path} {error}.",), is_broken=True)
    reading = _Reading(tree=tree, path=path, properties=properties, variables=variables, allowed=allowed)
    return reading.read()


@mutable(kw_only=True)
class _Reading:
    """One file on its way to a Devcontainer."""

    tree: Tree
    path: str
    properties: dict[str, Any]
    variables: Variables
    allowed: Collection[str]
    notes: list[str] = field(factory=list)

    def read(self) -> Devcontainer:
        env = self._env("containerEnv")
        self.variables = evolve(self.variables, env=env)
        env |= self._env("remoteEnv")
        build, image = self._build(), None
        if build is None:
            image = self._image()
        commands, left_out = read_commands(self.properties, self.variables)
        cpus, memory_mb, more = read_requirements(self.properties.get("hostRequirements"))
        self.notes += [*left_out, *more]
        user = self._user()
        name = self.properties.get("name")
        ports = self._ports()
        self._say_the_rest()
        notes = [printable(f"{self.path}: {note}") for note in (*self.notes, *self.variables.notes)]
        return Devcontainer(
            path=self.path,
            name=name[:100] if isinstance(name, str) and name.isprintable() else None,
            image=image,
            build=build,
            env=env,
            ports=ports,
            commands=commands,
            user=user,
            cpus=cpus,
            memory_mb=memory_mb,
            notes=tuple(dict.fromkeys(notes))[:MAX_NOTES],
        )

    def _env(self, key: str) -> dict[str, str]:
        given = self.properties.get(key, {})
        if not isinstance(given, dict):
            self.notes.append(f"{key} is not an object, and left out.")
            return {}
        found: dict[str, str] = {}
        for name, value in given.items():
            if value is None or len(found) >= MAX_ENV:
                self.notes.append(f"{key}.{_shown(name)} is left out: {_why_no_env(value)}.")
            elif not isinstance(value, str) or "\0" in value or not _is_env_name(name):
                self.notes.append(
                    f"{key}.{_shown(name)} is left out: it is not a variable of the environment."
                )
            else:
                try:
                    found[name] = self.variables.resolve(value, f"{key}.{name}")
                except Unresolvable as error:
                    self.notes.append(f"{key}.{name} is left out: it {error}.")
        return found

    def _image(self) -> str | None:
        image = self.properties.get("image")
        if image is None:
            return None
        try:
            if not isinstance(image, str):
                raise UnusableImage("it is not text")
            return image_reference(self.variables.resolve(image, "image"), self.allowed)
        except (UnusableImage, Unresolvable) as error:
            self.notes.append(f"image is not used: {error}.")
            return None

    def _build(self) -> DockerfileBuild | None:
        """Return the image to build, None where there is none or its Dockerfile cannot be used."""
        named = _dockerfile(self.properties)
        if named is None:
            return None
        try:
            return self._read_build(named)
        except (UnusableDockerfile, Unresolvable) as error:
            self.notes.append(f"the Dockerfile is not used: {error}.")
            return None

    def _read_build(self, named: Any) -> DockerfileBuild:
        build = self.properties.get("build")
        options = build if isinstance(build, dict) else {}
        place = dirname(self.path)
        if not isinstance(named, str):
            raise UnusableDockerfile("its path is not text")
        file = _inside(place, named)
        text = self.tree.text(file)
        if text is None:
            raise UnusableDockerfile(f"{_shown(file)} is not there, or too large")
        context = options.get("context", self.properties.get("context", "."))
        if not isinstance(context, str):
            raise UnusableDockerfile("its context is not text")
        target = options.get("target")
        if target is not None and not isinstance(target, str):
            raise UnusableDockerfile("its target is not text")
        for option in options.keys() - {"dockerfile", "context", "args", "target"}:
            self.notes.append(f"build.{_shown(option)} is not honoured.")
        recipe, notes = make_recipe(text, self._arguments(options.get("args")), target, self.allowed)
        self.notes += notes
        directory = _inside(place, context)
        if join(directory, ".dockerignore") in self.tree.blobs:
            self.notes.append(".dockerignore is not honoured; all of the context but .git is sent.")
        return DockerfileBuild(recipe=recipe, context=directory)

    def _arguments(self, given: Any) -> dict[str, str]:
        if given is None:
            return {}
        if not isinstance(given, dict):
            self.notes.append("build.args is not an object, and left out.")
            return {}
        found: dict[str, str] = {}
        for name, value in given.items():
            is_usable = isinstance(value, str) and value.isprintable() and _ENV_NAME.fullmatch(name)
            if not is_usable or len(found) >= MAX_ARGUMENTS:
                self.notes.append(f"build.args.{_shown(name)} is left out: it is not a line of text.")
            else:
                found[name] = self.variables.resolve(value, f"build.args.{name}")
        return found

    def _ports(self) -> tuple[int, ...]:
        given = self.properties.get("forwardPorts", [])
        if not isinstance(given, list):
            self.notes.append("forwardPorts is not a list, and left out.")
            return ()
        found: dict[int, None] = {}
        for value in given[:MAX_PORTS]:
            text = str(value).removeprefix("localhost:") if isinstance(value, str) else value
            number = int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,5}", text) else text
            if type(number) is int and 0 < number < 65536:
                found[number] = None
            else:
                self.notes.append(
                    f"forwardPorts: {_shown(value)} is not a port of the machine, and left out."
                )
        if len(given) > MAX_PORTS:
            self.notes.append(f"forwardPorts: only the first {MAX_PORTS} are taken.")
        return tuple(found)

    def _user(self) -> str | None:
        user = self.properties.get("remoteUser", self.properties.get("containerUser"))
        if user is None:
            return None
        if not isinstance(user, str) or _USER.fullmatch(user) is None:
            self.notes.append(f"remoteUser: {_shown(user)} is not the name of a user, and left out.")
            return None
        self.notes.append(
            f"remoteUser: the commands of {_FILE} run as {user}; shells and other commands run as uid 1000 "
            "where they name no user."
        )
        return user

    def _say_the_rest(self) -> None:
        folder = self.properties.get("workspaceFolder")
        if folder not in (None, WORKDIR, "${containerWorkspaceFolder}"):
            self.notes.append(f"workspaceFolder is not honoured: the repository always lies at {WORKDIR}.")
        for key in self.properties.keys() - _HONOURED - _IGNORED:
            why = _UNSUPPORTED.get(key, "it is not known here")
            if key not in ("init", "privileged") or self.properties[key]:
                self.notes.append(f"{_shown(key)} is not honoured: {why}.")
        self.notes.sort()


def _properties(tree: Tree, path: str) -> dict[str, Any]:
    text = tree.text(path)
    if text is None:
        raise Unreadable("could not be read, or is too large")
    found = parse_json_with_comments(text)
    if not isinstance(found, dict):
        raise Unreadable("is not an object")
    return {str(key): value for key, value in found.items()}


def _dockerfile(properties: Mapping[str, Any]) -> Any:
    build = properties.get("build")
    named = build.get("dockerfile", build.get("dockerFile")) if isinstance(build, dict) else None
    return named if named is not None else properties.get("dockerFile")


def _inside(directory: str, path: str) -> str:
    """Return a path that is given from one of the repository's directories; raise Unresolvable outside."""
    whole = normpath(join(directory, path)) if path else directory
    if path.startswith("/") or "\\" in path or not path.isprintable() or whole.split("/")[0] == "..":
        raise Unresolvable(f"'{_shown(path)}' is not inside the repository")
    return "" if whole == "." else whole


def _is_env_name(name: Any) -> bool:
    return isinstance(name, str) and bool(_ENV_NAME.fullmatch(name)) and not name.startswith(_RESERVED_ENV)


def _why_no_env(value: Any) -> str:
    return "nothing is unset" if value is None else f"at most {MAX_ENV} are taken"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)[:200]
    line = printable(text[:200])
    return line[:MAX_SHOWN_CHARACTERS] + ("…" if len(line) > MAX_SHOWN_CHARACTERS else "")
