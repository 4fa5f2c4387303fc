"""Repositories in small, as they are met in the wild: their files, and the presets that they are to get."""

from collections.abc import Mapping

from attrs import field, frozen


@frozen(kw_only=True)
class Repository:
    """Files by path, and what detection is to say of them, of what is given."""

    files: Mapping[str, str]
    presets: tuple[str, ...]  # ids, best first
    template: str | None = "?"  # of the best
    ports: tuple[int, ...] | None = None
    parts: tuple[tuple[str, str], ...] = ()  # (ecosystem, directory)
    versions: tuple[tuple[str, str, str], ...] = ()  # (of, value, path), among others
    steps: tuple[str, ...] = ()  # pieces of the provisioning lines, one a line
    notes: tuple[str, ...] = field(default=())  # pieces of the notes, each in one of them
    evidence: tuple[str, ...] = ()  # paths, among others


def sources(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "")


NEXT = '{"name": "web", "dependencies": {"next": "15.0.0", "react": "19.0.0"}, "engines": {"node": ">=18"}}'
POM = """<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <parent><groupId>org.springframework.boot</groupId><artifactId>spring-boot-starter-parent</artifactId></parent>
  <properties><java.version>21</java.version></properties>
  <dependencies><dependency><artifactId>spring-boot-starter-web</artifactId></dependency></dependencies>
</project>
"""
BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<project><properties><java.version>&b;</java.version></properties></project>
"""

REPOSITORIES: dict[str, Repository] = {
    "nothing at all": Repository(files={}, presets=()),
    "documents alone": Repository(files={"README.md": "# Hello", "LICENSE": ""}, presets=()),
    "a C library, which has no preset": Repository(
        files={"CMakeLists.txt": "", "src/main.c": ""}, presets=()
    ),
    "Django with requirements": Repository(
        files={
            "manage.py": "",
            "requirements.txt": "Django>=4.2\npsycopg2-binary==2.9\n# comment\n-r more.txt\n",
            ".python-version": "3.11\n",
            **sources("shop/models.py", "shop/views.py"),
        },
        presets=("django",),
        template="python",
        ports=(8000,),
        parts=(("python", "."),),
        versions=(("Python", "3.11", ".python-version"),),
        steps=("pip install -q -r requirements.txt",),
        evidence=("requirements.txt", "manage.py", ".python-version"),
    ),
    "FastAPI with uv": Repository(
        files={
            "pyproject.toml": '[project]\nname="api"\nrequires-python=">=3.12"\n'
            'dependencies=["fastapi[standard]>=0.1"]\n',
            "uv.lock": "version = 1\n",
            "app/main.py": "",
        },
        presets=("fastapi",),
        template="python",
        ports=(8000,),
        versions=(("Python", ">=3.12", "pyproject.toml"),),
        steps=("sync --frozen",),
        notes=("pyproject.toml asks for Python >=3.12; the built-in image has 3.11.2.",),
    ),
    "Flask with poetry": Repository(
        files={
            "pyproject.toml": '[tool.poetry.dependencies]\npython="^3.10"\nFlask="^3"\n',
            "poetry.lock": "",
            "web.py": "",
        },
        presets=("flask",),
        ports=(5000,),
        versions=(("Python", "^3.10", "pyproject.toml"),),
        steps=("install --no-interaction",),
    ),
    "Pipfile": Repository(
        files={
            "Pipfile": '[packages]\nflask = "*"\n[requires]\npython_version = "3.9"\n',
            "Pipfile.lock": "{}",
        },
        presets=("flask",),
        versions=(("Python", "3.9", "Pipfile"),),
        notes=("Pipfile asks for Python 3.9",),
        steps=("sync --dev",),
    ),
    "an old Python package": Repository(
        files={
            "setup.py": "setup(name='x', python_requires='>=3.8', install_requires=['tornado>=6', 'six'])",
            "x/__init__.py": "",
            "tests/test_x.py": "",
        },
        presets=("tornado",),
        versions=(("Python", ">=3.8", "setup.py"),),
        steps=("pip install -q -e .",),
    ),
    "a Python package with only tools configured": Repository(
        files={"pyproject.toml": "[tool.ruff]\nline-length = 100\n", "run.py": ""},
        presets=("python-project",),
        template="python",
        steps=(),
    ),
    "dependency groups and requirements in a folder": Repository(
        files={
            "requirements/base.txt": "celery\n",
            "requirements/dev.txt": "-r base.txt\nStreamlit\n",
            "a.py": "",
        },
        presets=("streamlit",),
        ports=(8501,),
        steps=("-r requirements/dev.txt",),
    ),
    "Next.js with npm": Repository(
        files={"package.json": NEXT, "package-lock.json": "{}", "pages/index.tsx": ""},
        presets=("nextjs",),
        template="node",
        ports=(3000,),
        versions=(("Node.js", ">=18", "package.json"),),
        steps=("npm ci",),
    ),
    "React on Vite with pnpm of a version": Repository(
        files={
            "package.json": '{"packageManager": "pnpm@8.15.4+sha512.abc", "dependencies": {"react": "19"},'
            ' "devDependencies": {"vite": "6"}}',
            "pnpm-lock.yaml": "",
            ".nvmrc": "v22.3.0\n",
            "src/main.tsx": "",
        },
        presets=("react",),
        ports=(5173,),
        versions=(
            ("Node.js", "22.3.0", ".nvmrc"),
            ("package manager", "pnpm@8.15.4+sha512.abc", "package.json"),
        ),
        steps=("npx --yes pnpm@8.15.4 install --frozen-lockfile",),
        notes=(".nvmrc asks for Node.js 22.3.0; the built-in image has 18.20.4",),
    ),
    "Vue with yarn": Repository(
        files={
            "package.json": '{"dependencies": {"vue": "3"}, "devDependencies": {"vite": "6"}}',
            "yarn.lock": "",
        },
        presets=("vue",),
        ports=(5173,),
        steps=("yarn install --frozen-lockfile",),
    ),
    "Express with modern yarn, and a manager that is none": Repository(
        files={
            "package.json": '{"packageManager": "yarn@4.1.0; rm -rf /", "dependencies": {"express": "5"}}',
            "yarn.lock": "",
            ".yarnrc.yml": "",
        },
        presets=("express",),
        ports=(3000,),
        steps=("npx --yes @yarnpkg/cli-dist@4.1.0 install --immutable",),
    ),
    "a Node workspace whose members are many": Repository(
        files={
            "package.json": '{"private": true, "workspaces": ["apps/*", "packages/**", "!packages/old"]}',
            "package-lock.json": "{}",
            "apps/site/package.json": NEXT,
            "apps/api/package.json": '{"dependencies": {"@nestjs/core": "10", "express": "4"}}',
            "packages/ui/button/package.json": '{"dependencies": {"react": "19"}}',
            "packages/old/package.json": '{"dependencies": {"koa": "1"}}',
            **sources("apps/site/a.tsx", "apps/api/b.ts", "packages/ui/button/c.tsx"),
        },
        presets=("nextjs+koa", "nextjs", "koa"),
        parts=(("node", "."), ("node", "packages/old")),
        ports=(3000,),
    ),
    "a pnpm workspace": Repository(
        files={
            "package.json": "{}",
            "pnpm-workspace.yaml": "packages:\n  - 'web'\n",
            "pnpm-lock.yaml": "",
            "web/package.json": '{"dependencies": {"@sveltejs/kit": "2", "svelte": "5"},'
            ' "devDependencies": {"vite": "6"}}',
            "web/a.svelte": "",
        },
        presets=("sveltekit",),
        ports=(5173,),
        steps=("pnpm@9",),
    ),
    "a Go service": Repository(
        files={
            "go.mod": "module example.test/x\n\ngo 1.22.1\n\ntoolchain go1.23.4\n\nrequire (\n"
            "\tgithub.com/gin-gonic/gin v1.9.1\n\tgolang.org/x/net v0.1.0 // indirect\n)\n",
            "go.sum": "",
            "main.go": "",
        },
        presets=("gin",),
        template="go",
        ports=(8080,),
        versions=(("Go", "1.23.4", "go.mod"), ("Go", "1.22.1", "go.mod")),
        notes=("go.mod asks for Go 1.22.1; the built-in image has 1.19.8",),
        steps=("go mod download",),
    ),
    "a Go workspace": Repository(
        files={
            "go.work": "go 1.19\n\nuse (\n\t./api\n\t./lib\n)\n",
            "api/go.mod": "module a\ngo 1.19\nrequire github.com/labstack/echo/v4 v4.11.0\n",
            "lib/go.mod": "module l\ngo 1.19\n",
            **sources("api/main.go", "lib/l.go"),
        },
        presets=("echo",),
        parts=(("go", "."),),
        ports=(1323,),
    ),
    "a Rust workspace": Repository(
        files={
            "Cargo.toml": '[workspace]\nmembers = ["crates/*"]\n[workspace.package]\nrust-version = "1.75"\n',
            "Cargo.lock": "",
            "rust-toolchain.toml": '[toolchain]\nchannel = "1.76.0"\n',
            "crates/server/Cargo.toml": '[dependencies]\naxum = "0.7"\n',
            "crates/server/src/main.rs": "",
        },
        presets=("axum",),
        template="rust",
        ports=(3000,),
        versions=(("Rust", "1.76.0", "rust-toolchain.toml"), ("Rust", "1.75", "Cargo.toml")),
        steps=("cargo fetch --locked",),
    ),
    "Rust of a channel": Repository(
        files={
            "Cargo.toml": '[dependencies]\nactix-web = "4"\n',
            "rust-toolchain": "stable\n",
            "src/main.rs": "",
        },
        presets=("actix",),
        versions=(("Rust", "stable", "rust-toolchain"),),
        notes=("rust-toolchain asks for Rust stable, which cannot be compared",),
    ),
    "Spring Boot with Maven": Repository(
        files={"pom.xml": POM, "src/main/java/A.java": "", "mvnw": ""},
        presets=("spring-boot",),
        template="java",
        ports=(8080,),
        versions=(("Java", "21", "pom.xml"),),
        notes=("pom.xml asks for Java 21",),
        steps=("sh ./mvnw",),
    ),
    "Maven of several modules": Repository(
        files={
            "pom.xml": "<project><properties><maven.compiler.release>17</maven.compiler.release></properties>"
            "<modules><module>core</module><module>web</module></modules></project>",
            "core/pom.xml": "<project/>",
            "web/pom.xml": POM,
            "web/src/main/java/A.java": "",
        },
        presets=("spring-boot",),
        parts=(("java", "."),),
        versions=(("Java", "17", "pom.xml"),),
        steps=("mvn -q -B dependency:go-offline",),
    ),
    "Gradle in Kotlin": Repository(
        files={
            "build.gradle.kts": 'plugins { id("io.quarkus") }\nkotlin { jvmToolchain(17) }\n',
            "settings.gradle.kts": "",
            "gradlew": "",
            "app/build.gradle.kts": 'dependencies { implementation("io.ktor:ktor-server-core:2.0") }',
            "app/src/A.kt": "",
        },
        presets=("quarkus",),
        parts=(("java", "."),),
        versions=(("Java", "17", "build.gradle.kts"),),
        steps=("sh ./gradlew",),
    ),
    "an old Gradle build": Repository(
        files={
            "build.gradle": "sourceCompatibility = '1.8'\n"
            "plugins { id 'org.springframework.boot' version '2' }"
        },
        presets=("spring-boot",),
        versions=(("Java", "1.8", "build.gradle"),),
        notes=(),
    ),
    "Rails": Repository(
        files={
            "Gemfile": "source 'https://rubygems.org'\nruby \"3.3.0\"\ngem 'rails', '~> 7.1'\n",
            "Gemfile.lock": "",
            ".ruby-version": "ruby-3.3.0\n",
            "config/application.rb": "",
            "package.json": '{"dependencies": {"esbuild": "1"}}',
            **sources("app/models/a.rb", "app/models/b.rb"),
        },
        presets=("rails", "node-project"),
        template=None,
        ports=(3000,),
        versions=(("Ruby", "3.3.0", ".ruby-version"), ("Ruby", "3.3.0", "Gemfile")),
        notes=(".ruby-version asks for Ruby 3.3.0; the built-in image has 3.1.2",),
        steps=("bundle install",),
    ),
    "Laravel with its front end": Repository(
        files={
            "composer.json": '{"require": {"php": "^8.1", "laravel/framework": "^11.0"}}',
            "artisan": "",
            "package.json": '{"devDependencies": {"vite": "5", "laravel-vite-plugin": "1"}}',
            **sources("app/A.php", "app/B.php", "resources/js/app.js"),
        },
        presets=("laravel+vite", "laravel", "vite"),
        template=None,
        ports=(8000, 5173),
        steps=("composer install", "npm install"),
    ),
    "Phoenix": Repository(
        files={
            "mix.exs": 'def project, do: [app: :x, elixir: "~> 1.14"]\n'
            'defp deps do [{:phoenix, "~> 1.7"}] end',
            ".tool-versions": "elixir 1.16.0\nerlang 26.2\n",
            "lib/x.ex": "",
        },
        presets=("phoenix",),
        template=None,
        ports=(4000,),
        versions=(("Elixir", "1.16.0", ".tool-versions"), ("Elixir", "~> 1.14", "mix.exs")),
        steps=("mix deps.get",),
    ),
    "an umbrella": Repository(
        files={
            "mix.exs": 'def project, do: [apps_path: "apps"]',
            "apps/web/mix.exs": "defp deps, do: [{:phoenix, []}]",
            "apps/web/lib/a.ex": "",
        },
        presets=("phoenix",),
        parts=(("elixir", "."),),
    ),
    ".NET, which Debian has not": Repository(
        files={
            "shop.sln": "",
            "src/Shop/Shop.csproj": '<Project Sdk="Microsoft.NET.Sdk.Web"><PropertyGroup>'
            "<TargetFramework>net8.0</TargetFramework></PropertyGroup></Project>",
            "global.json": '{"sdk": {"version": "8.0.100"}}',
            "src/Shop/Program.cs": "",
        },
        presets=("aspnet",),
        template="base",
        ports=(5000,),
        versions=((".NET SDK", "8.0.100", "global.json"),),
        notes=("Debian has no .NET packages",),
    ),
    "a Dockerfile alone": Repository(
        files={"Dockerfile": "FROM nginx\nEXPOSE 80 443/tcp 53/udp\n"},
        presets=("dockerfile",),
        template="base",
        ports=(80, 443),
        notes=("The Dockerfile is not built",),
    ),
    "a Dockerfile beside Python tells its ports": Repository(
        files={"requirements.txt": "gunicorn\n", "Dockerfile": "FROM python:3.12\nEXPOSE 9000", "a.py": ""},
        presets=("python-project",),
        ports=(9000,),
        evidence=("requirements.txt", "Dockerfile"),
    ),
    "a back end in Python and a front end in Node": Repository(
        files={
            "backend/requirements.txt": "django\n",
            "backend/manage.py": "",
            "backend/app/a.py": "",
            "frontend/package.json": '{"dependencies": {"react": "19"}, "devDependencies": {"vite": "6"}}',
            "frontend/package-lock.json": "{}",
            "frontend/src/a.tsx": "",
            ".tool-versions": "python 3.11\nnodejs 18.20.4\n",
        },
        presets=("django+react", "django", "react"),
        template=None,
        ports=(8000, 5173),
        parts=(("python", "backend"), ("node", "frontend")),
        versions=(("Python", "3.11", ".tool-versions"), ("Node.js", "18.20.4", ".tool-versions")),
        steps=("cd -- backend && { python3 -m venv", "cd -- frontend && { npm ci"),
    ),
    "three at once": Repository(
        files={
            "services/api/go.mod": "module a\ngo 1.19\nrequire github.com/gofiber/fiber/v2 v2.0.0\n",
            "services/api/main.go": "",
            "services/ml/pyproject.toml": '[project]\nname="ml"\ndependencies=["gradio"]\n',
            "services/ml/a.py": "",
            "web/package.json": NEXT,
            "web/a.tsx": "",
        },
        presets=("nextjs+fiber+gradio", "nextjs", "fiber", "gradio"),
        template=None,
        ports=(3000, 7860),
    ),
    "a Python tool whose package.json is for its formatter": Repository(
        files={
            "pyproject.toml": '[project]\nname="x"\n',
            "package.json": '{"devDependencies": {"prettier": "3"}}',
            **sources("x/a.py", "x/b.py"),
        },
        presets=("python-project", "node-project"),
        template="python",
        steps=("pip install -q -e .",),
    ),
    "examples and tests do not count beside the real thing": Repository(
        files={
            "Cargo.toml": '[package]\nname="x"\n',
            "src/lib.rs": "",
            "examples/web/package.json": NEXT,
            "tests/python/requirements.txt": "django",
            "docs/package.json": "{}",
            "node_modules/a/package.json": NEXT,
            "vendor/b/go.mod": "module b",
        },
        presets=("rust-project",),
    ),
    "nothing but examples": Repository(
        files={"examples/one/go.mod": "module x\ngo 1.19\n", "examples/one/main.go": ""},
        presets=("go-project",),
        parts=(("go", "examples/one"),),
    ),
    "nothing but what was vendored": Repository(
        files={"third_party/x/package.json": NEXT, "tests/fixtures/a/pom.xml": POM}, presets=()
    ),
    "broken manifests": Repository(
        files={
            "pyproject.toml": "[project\nname=",
            "package.json": '{"dependencies": {"next": ',
            "requirements.txt": "flask\n",
            "a.py": "",
            "b.js": "",
        },
        presets=("flask+node-project", "flask", "node-project"),
        notes=("pyproject.toml is not valid TOML", "package.json is not valid JSON"),
    ),
    "an XML bomb": Repository(
        files={"pom.xml": BOMB, "A.java": ""},
        presets=("java-project",),
        versions=(),
        notes=("pom.xml is not valid XML",),
    ),
    "manifests of the wrong shape": Repository(
        files={
            "package.json": '["next"]',
            "web/package.json": '{"dependencies": ["next"], "engines": "18",'
            ' "workspaces": 7, "packageManager": {}}',
            "Cargo.toml": 'dependencies = "axum"\nworkspace = 3\n',
            "composer.json": "null",
        },
        presets=("node-project", "node-project", "php-project", "rust-project", "node-project"),
    ),
    "nested too deeply": Repository(
        files={"package.json": '{"a":' * 50_000, "pnpm-workspace.yaml": "[" * 30_000},
        presets=("node-project",),
        notes=("package.json is not valid JSON", "pnpm-workspace.yaml is not valid YAML"),
    ),
    "names that are shell": Repository(
        files={
            "a'; touch pwned; '/package.json": NEXT,
            "a'; touch pwned; '/a.ts": "",
            "$(id)/requirements.txt": "django",
            "$(id)/a.py": "",
        },
        presets=("django+nextjs", "django", "nextjs"),
        steps=(
            "cd -- '$(id)' && {",
            """cd -- 'a'"'"'; touch pwned; '"'"'' && {""",
        ),
    ),
}
