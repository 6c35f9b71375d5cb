"""Gateways and proxies of others, each in its own environment in the cache."""

import abc
import json
import os
import re
import shutil
from types import MappingProxyType

from scripts.bench.programs import CACHE, ask, run_step
from scripts.bench.sides import ProgramSide, Side

LITELLM = "1.108.7"
PRISMA = "0.15.0"
TENSORZERO = "2026.6.0"
PORTKEY = "1.15.2"
HONO_NODE_SERVER = "1.13.5"
"""Portkey's streams fail with a newer version."""
OTARI = "0.4.0"
OTARI_MCP = "mcp<2"
OTARI_MINOR = 13
"""The oldest Python that Otari runs on, 3.13."""
DEBIAN = ("nginx", "libpcre2-8-0", "libssl3")


class Peer(ProgramSide):
    """A gateway that is installed into its own directory. ``versions`` are its pinned versions; a
    directory made for other versions is replaced."""

    versions = ()

    @property
    def home(self):
        """The directory of the installation."""
        return CACHE / "peers" / self.name

    def install(self):
        """Install the gateway once; an interrupted installation is repeated."""
        stamp = self.home / "installed"
        wanted = "\n".join(map(str, [*self.versions, *self._made_with()]))
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(self.home, ignore_errors=True)
            self.home.mkdir(parents=True)
            self._install()
            stamp.write_text(wanted)
        return ", ".join(self.versions)

    def _made_with(self):
        return ()

    @abc.abstractmethod
    def _install(self):
        """Install the gateway into its directory, which is empty."""

    def _upstream(self, path=""):
        return f"http://127.0.0.1:{self.place.upstream.port}{path}"

    def _use_database(self):
        """Create the database, the first time."""
        if self.postgres_pid is None:
            postgres = self.place.postgres()
            self.postgres_pid = postgres.pid
            self._database_url = postgres.new_database(self.name)

    def _write(self, name, text):
        """Write a configuration file; return its path."""
        path = self.place.directory / f"{self.name}.{name}"
        path.write_text(text)
        return path


class _OfPython(Peer):
    """A gateway from PyPI."""

    def _made_with(self):
        return (self.place.python.path,)

    def _install(self):
        run_step(self.place.python.path, "-m", "venv", self.home / "venv")
        run_step(self._tool("pip"), "install", "--quiet", *self.versions)

    def _tool(self, name):
        return self.home / "venv" / "bin" / name


NGINX = """
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    client_max_body_size 36m;
    client_body_buffer_size 2m;
    keepalive_requests 1000000000;
    upstream double {{
        server 127.0.0.1:{upstream};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://double;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


class Nginx(Peer):
    """Nginx, a proxy in C that does not parse the calls."""

    name = "nginx"
    about = "a proxy in C that knows nothing of calls, one worker: Debian's package"
    versions = DEBIAN

    def _install(self):
        run_step("apt-get", "download", *DEBIAN, cwd=self.home)
        for package in self.home.glob("*.deb"):
            run_step("dpkg-deb", "-x", package, self.home / "root")

    @property
    def _libraries(self):
        return ":".join(map(str, self.home.glob("root/usr/lib/*-linux-*")))

    def install(self):
        """Return the version, which is the one that Debian has."""
        super().install()
        program = self.home / "root/usr/sbin/nginx"
        output = run_step(program, "-v", LD_LIBRARY_PATH=self._libraries)
        return output.strip().removeprefix("nginx version: ")

    def command(self):
        """One worker without a log, with streams passed on unbuffered."""
        facts = {
            "directory": self.place.directory,
            "upstream": self.place.upstream.port,
            "port": self.port,
        }
        path = self._write("conf", NGINX.format(**facts))
        program = self.home / "root/usr/sbin/nginx"
        user = ["-g", "user root;"] if os.geteuid() == 0 else []
        return [program, "-c", path, *user], {"LD_LIBRARY_PATH": self._libraries}


class Litellm(_OfPython):
    """LiteLLM's proxy as it starts without a database, which counts nothing."""

    name = "litellm"
    title = "LiteLLM's proxy, without its database"
    about = "its proxy without a database, so without keys, budgets or spend"
    versions = (f"litellm[proxy]=={LITELLM}",)
    targets = MappingProxyType(
        {Side.model: "gpt-4o", Side.embedding_model: "text-embedding-3-small"}
    )
    key = "sk-bench-0123456789abcdef0123456789abcdef01234567"

    def command(self):
        """One worker that downloads nothing."""
        models = [
            {
                "model_name": model,
                "litellm_params": {
                    # For a model named after Llama it would download a tokenizer.
                    "model": f"openai/{target}",
                    "api_base": self._upstream("/v1"),
                    "api_key": "sandbox",
                },
            }
            for model, target in self.targets.items()
        ]
        # JSON is valid YAML.
        config = self._write("yaml", json.dumps({"model_list": models, **self._settings()}))
        arguments = ["--config", config, "--host", "127.0.0.1", "--port", self.port]
        environment = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
            "HF_HUB_OFFLINE": "1",
            "NO_DOCS": "True",
        }
        return [self._tool("litellm"), *arguments, "--num_workers", "1"], environment

    def _settings(self):
        # It does not start without this setting.
        self.headers = {"Authorization": f"Bearer {self.key}"}
        return {"general_settings": {"master_key": self.key}}


class LitellmDatabase(Litellm):
    """LiteLLM's proxy with PostgreSQL, which counts spend."""

    name = "litellm-db"
    title = "LiteLLM's proxy, with its database"
    about = "its proxy with PostgreSQL and a key, so that it counts spend"
    keeps = "a key, spend"
    versions = (f"litellm[proxy]=={LITELLM}", f"prisma=={PRISMA}")

    def _install(self):
        # Install prisma's engines first, because that download may fail.
        run_step(self.place.python.path, "-m", "venv", self.home / "venv")
        run_step(self._tool("pip"), "install", "--quiet", self.versions[-1])
        path = f"{self._tool('')}:{os.environ['PATH']}"
        run_step(self._tool("prisma"), "py", "fetch", PATH=path, **self._home)
        super()._install()
        (schema,) = self.home.glob("venv/lib/*/site-packages/litellm/proxy/schema.prisma")
        run_step(self._tool("prisma"), "generate", f"--schema={schema}", PATH=path, **self._home)

    @property
    def _home(self):
        # Prisma stores its engines there.
        return {"HOME": str(self.home)}

    def start(self):
        """Start it; the first start creates the tables."""
        self._use_database()
        return super().start()

    def command(self):
        """The command with the database's address in the environment."""
        arguments, environment = super().command()
        path = f"{self._tool('')}:{os.environ['PATH']}"
        more = {"DATABASE_URL": self._database_url, "PATH": path, **self._home}
        return arguments, {**environment, **more}


TENSORZERO_CONFIG = """
[gateway]
observability.enabled = false
[models."{model}"]
routing = ["double"]
[models."{model}".providers.double]
type = "openai"
model_name = "{model}"
api_base = "{url}"
api_key_location = "none"
[embedding_models."{embedding_model}"]
routing = ["double"]
[embedding_models."{embedding_model}".providers.double]
type = "openai"
model_name = "{embedding_model}"
api_base = "{url}"
api_key_location = "none"
"""
TENSORZERO_PROGRAM = """
import sys, threading, tensorzero
gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None,
    async_setup=False,
)
print("gateway at", gateway.base_url, flush=True)
threading.Event().wait()
"""


class Tensorzero(_OfPython):
    """TensorZero's gateway in Rust, which its Python package can serve over HTTP."""

    name = "tensorzero"
    title = "TensorZero"
    about = "its gateway in Rust, without observability: it counts nothing"
    keeps = "nothing; its observability is off"
    versions = (f"tensorzero=={TENSORZERO}",)
    chat_path = "/openai/v1/chat/completions"
    embeddings_path = "/openai/v1/embeddings"
    model = f"tensorzero::model_name::{Side.model}"
    embedding_model = f"tensorzero::embedding_model_name::{Side.embedding_model}"

    def command(self):
        """The command; the gateway chooses its port and prints it."""
        self.port = None
        facts = {
            "model": Side.model,
            "embedding_model": Side.embedding_model,
            "url": self._upstream("/v1/"),
        }
        config = self._write("toml", TENSORZERO_CONFIG.format(**facts))
        # Output of the last start would be mistaken for this one's.
        (self.place.directory / f"{self.name}.log").unlink(missing_ok=True)
        return [self._tool("python"), "-c", TENSORZERO_PROGRAM, config], {}

    def is_ready(self):
        """Return whether it has printed where it listens."""
        if self.port is None:
            output = (self.place.directory / f"{self.name}.log").read_text()
            found = re.search(r"gateway at http://[^:]+:(\d+)", output)
            if found is None:
                return False
            self.port = int(found[1])
        return super().is_ready()


class Portkey(Peer):
    """Portkey's gateway on Node."""

    name = "portkey"
    title = "Portkey"
    about = "its open gateway on Node: it counts nothing"
    versions = (f"@portkey-ai/gateway@{PORTKEY}", f"@hono/node-server@{HONO_NODE_SERVER}")

    def _install(self):
        package = {
            "private": True,
            "dependencies": {"@portkey-ai/gateway": PORTKEY},
            "overrides": {"@hono/node-server": HONO_NODE_SERVER},
        }
        (self.home / "package.json").write_text(json.dumps(package))
        quiet = ("--no-audit", "--no-fund", "--ignore-scripts")
        run_step("npm", "install", *quiet, cwd=self.home)

    def command(self):
        """The command; headers of the calls name the upstream."""
        self.headers = {
            "Authorization": "Bearer sandbox",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": self._upstream("/v1"),
        }
        program = self.home / "node_modules/@portkey-ai/gateway/build/start-server.js"
        environment = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
        return ["node", program, f"--port={self.port}", "--headless"], environment


class Otari(Peer):
    """Otari, mozilla.ai's gateway, with PostgreSQL: keys, prices, reservations and a usage log. It
    is not on PyPI (the package of that name is its client), so it runs from its repository."""

    name = "otari"
    title = "Otari"
    about = "its gateway with PostgreSQL and a key, on a Python of its own: it keeps a usage log"
    keeps = "keys, budgets, reservations, a usage log"
    versions = (f"otari v{OTARI}", OTARI_MCP)
    model = f"openai:{Side.model}"
    embedding_model = f"openai:{Side.embedding_model}"
    master = "master-key-of-the-bench-0123456789abcdef"

    def _install(self):
        is_old = self.place.python.minor < OTARI_MINOR
        python = f"python3.{OTARI_MINOR}" if is_old else self.place.python.path
        source = self.home / "source"
        address = "https://github.com/mozilla-ai/otari"
        run_step(
            "git", "clone", "--quiet", "--depth", "1", "--branch", f"v{OTARI}", address, source
        )
        run_step(python, "-m", "venv", self.home / "venv")
        # Its migrations are found beside its source. It allows newer versions of mcp, and fails
        # with them.
        run_step(self._tool("pip"), "install", "--quiet", "--editable", source, OTARI_MCP)

    def _tool(self, name):
        return self.home / "venv" / "bin" / name

    def install(self):
        """Return the version, with that of its Python."""
        return f"{super().install()}, {run_step(self._tool('python'), '--version').strip()}"

    def start(self):
        """Start it; the first start creates the tables and a key."""
        self._use_database()
        return super().start()

    def command(self):
        """One process that asks nobody but the upstream."""
        prices = {"input_price_per_million": 0.7, "output_price_per_million": 2.8}
        config = {
            # Its migrations have this driver, and what SQLAlchemy takes otherwise it has not.
            "database_url": self._database_url.replace("postgresql:", "postgresql+psycopg2:"),
            "host": "127.0.0.1",
            "port": self.port,
            "master_key": self.master,
            "bootstrap_api_key": False,
            "model_discovery": False,
            "models_dev_metadata": False,
            "providers": {"openai": {"api_key": "sandbox", "api_base": self._upstream("/v1")}},
            "pricing": {self.model: prices, self.embedding_model: prices},
        }
        path = self._write("yaml", json.dumps(config))
        return [self._tool("otari"), "serve", "--config", path, "--log-level", "WARNING"], {}

    def is_ready(self):
        """Return whether it answers calls of the key."""
        if not self.headers:
            headers = {"Otari-Key": self.master}
            status, answer = ask(self.port, "/v1/keys", headers=headers, body={"key_name": "bench"})
            if status != 200:
                return False
            self.headers = {"Otari-Key": json.loads(answer)["key"]}
        return super().is_ready()


PEERS = {peer.name: peer for peer in (Nginx, Litellm, LitellmDatabase, Tensorzero, Portkey, Otari)}
