"""deploy/ as files: what runs is pinned, unprivileged and watched, and only the proxy can be reached."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_support import DEPLOY, DOCKERFILES, compose, final_stage, instructions, values
from support import ROOT

SERVICES = ("proxy", "app", "orthanc")
PINNED = re.compile(r"[\w./-]+:\d+\.\d+[\w.-]*")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY", re.IGNORECASE)


def tool(name):
    """A program of this environment or of the system; the test is skipped where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def options_of_serve():
    """Names of the arguments of `nny serve`, read without importing the server."""
    tree = ast.parse((ROOT / "monailabel_app" / "serve.py").read_text())
    (serve,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "serve"]
    return {argument.arg for argument in serve.args.args + serve.args.kwonlyargs}


def flags(words):
    return {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}


class TestDockerfiles:
    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_linter_finds_nothing(self, name):
        done = subprocess.run([tool("hadolint"), str(DOCKERFILES[name])], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_pinned_unprivileged_and_watched(self, name):
        file = DOCKERFILES[name]
        for image in values(file, "FROM"):
            assert PINNED.fullmatch(image.split(" AS ")[0]), image
            assert "slim" in image
        names = [name for name, _ in final_stage(file)]
        assert (names.count("USER"), names.count("HEALTHCHECK")) == (1, 1)
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", dict(final_stage(file))["USER"])
        assert not {"RUN", "COPY"} & set(names[names.index("USER") :])  # what it could write is its volume alone
        assert "ADD" not in dict(instructions(file))
        for name, value in instructions(file):
            if name in ("ENV", "ARG"):
                assert not SECRET.search(value), value

    def test_application_is_built_in_stages(self):
        assert len(values(DOCKERFILES["app"], "FROM")) == 2
        assert "COPY --from=build /opt/venv /opt/venv" in DOCKERFILES["app"].read_text()

    def test_installs_as_make_setup_does(self):
        recipe = re.findall(r"^\t\$\(BIN\)/(python -m pip install .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        steps = [step for step in values(DOCKERFILES["app"], "RUN") if "pip install" in step]
        assert len(recipe) == len(steps) == 3
        assert steps[0] == recipe[0]
        assert steps[2] == recipe[2]
        assert "grep '^torch=='" in recipe[1]
        pattern = re.search(r"grep -E '([^']*)'", steps[1]).group(1)  # torch, and what must come from the same place
        lines = (ROOT / "requirements.txt").read_text().splitlines()
        found = [line.split("==")[0] for line in lines if re.search(pattern, line)]
        assert found == ["torch", "torchvision"]

    def test_image_holds_code_and_the_demo_network_alone(self):
        copied = [value.split()[:-1] for value in values(DOCKERFILES["app"], "COPY")]
        sources = [path for paths in copied for path in paths if not path.startswith("--") and path != "/opt/venv"]
        assert sources == ["requirements.txt", "bundle", "monailabel_app"]
        ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
        assert next(line for line in ignored if line[0] in "*!") == "*"
        for line in ("bundle/models/*", "!bundle/models/demo", "bundle/runs", "bundle/data"):
            assert line in ignored
        assert {line[1:] for line in ignored if line.startswith("!")} == {*sources, "bundle/models/demo"}


class TestCompose:
    def test_services(self):
        assert set(compose()["services"]) == set(SERVICES)

    @pytest.mark.parametrize("name", SERVICES)
    def test_service_is_pinned_confined_and_watched(self, name):
        service = compose()["services"][name]
        assert PINNED.fullmatch(service["image"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert not {"privileged", "network_mode", "pid", "cap_add", "devices"} & set(service)
        built = name in DOCKERFILES
        assert built == ("build" in service)
        assert built or re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert built or service["healthcheck"]["test"][0] == "CMD"
        assert not any("docker.sock" in volume for volume in service["volumes"])

    def test_only_the_proxy_can_be_reached(self):
        config = compose()
        assert config["networks"]["inside"] == {"internal": True}
        for name in SERVICES:
            service = config["services"][name]
            assert ("ports" in service) == (name == "proxy")
            assert service["networks"] == (["outside", "inside"] if name == "proxy" else ["inside"])
        assert config["services"]["proxy"]["ports"] == ["${HTTPS_PORT:-443}:8443"]

    def test_starts_in_order(self):
        services = compose()["services"]
        assert services["proxy"]["depends_on"] == {"app": {"condition": "service_healthy"}}
        assert services["app"]["depends_on"] == {"orthanc": {"condition": "service_healthy"}}

    def test_no_secret_is_in_the_repository(self):
        config = compose()
        for service in config["services"].values():
            for name, value in service.get("environment", {}).items():
                if SECRET.search(name):
                    assert re.fullmatch(r"\$\{\w+:\?.+\}", value), name
        files = [f"deploy/secrets/{Path(secret['file']).name}" for secret in config["secrets"].values()]
        assert sorted(Path(file).name for file in files) == ["tls.crt", "tls.key", "users"]
        example = dict(line.split("=") for line in (DEPLOY / "example.env").read_text().splitlines() if "=" in line)
        assert set(re.findall(r"\$\{(\w+)", (DEPLOY / "docker-compose.yml").read_text())) == set(example)
        assert not [value for name, value in example.items() if SECRET.search(name) and value]
        if not (ROOT / ".git").exists():
            pytest.skip("no git repository, so nothing is ignored")
        done = subprocess.run(["git", "check-ignore", "deploy/.env", *files], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split() == ["deploy/.env", *files]

    def test_command_is_one_that_the_server_takes(self):
        command = compose()["services"]["app"]["command"]
        assert flags(command) <= options_of_serve()
        assert json.loads(values(DOCKERFILES["app"], "ENTRYPOINT")[0]) == ["python", "-m", "monailabel_app.serve"]

    def test_cuda_changes_the_build_and_asks_for_the_device(self):
        services = compose("docker-compose.cuda.yml")["services"]
        assert set(services) == {"app"}
        (argument,) = services["app"]["build"]["args"]
        assert argument in [value.split("=")[0] for value in values(DOCKERFILES["app"], "ARG")]
        assert services["app"]["image"] != compose()["services"]["app"]["image"]
        (device,) = services["app"]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


class TestProxy:
    def test_every_way_in_asks_for_a_password(self):
        """By nginx, or by Orthanc; except the health check, which says nothing."""
        text = (DEPLOY / "proxy" / "nginx.conf").read_text()
        server = text[text.index("server {") :]
        places = dict(re.findall(r"location ([^{]+?) \{([^}]*)\}", server))
        assert set(places) == {"= /healthz", "/", "/dicom-web/"}
        assert {place for place, body in places.items() if "auth_basic off" in body} == {"= /healthz", "/dicom-web/"}
        assert "proxy_pass" not in places["= /healthz"]
        assert "auth_basic_user_file" in server.split("location")[0]
        assert re.findall(r"listen (.*);", text) == ["8443 ssl"]

    def test_secrets_are_those_of_the_compose_file(self):
        used = set(re.findall(r"/run/secrets/(\w+)", (DEPLOY / "proxy" / "nginx.conf").read_text()))
        assert used == set(compose()["secrets"]) == set(compose()["services"]["proxy"]["secrets"])

    def test_orthanc_asks_too(self):
        config = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text())
        assert config["AuthenticationEnabled"] is True
        assert config["RegisteredUsers"] == {"nny": "${ORTHANC_PASSWORD}"}
        assert config["ExecuteLuaEnabled"] is False
        assert config["DicomServerEnabled"] is False
        assert compose()["services"]["app"]["environment"]["MONAI_LABEL_DICOMWEB_USERNAME"] == "nny"


class TestService:
    @pytest.fixture
    def unit(self, tmp_path):
        """The service file, with the program of this repository."""
        file = tmp_path / "nny.service"
        file.write_text((DEPLOY / "nny.service").read_text().replace("/opt/nny/nny", str(ROOT / "nny")))
        return file

    def test_systemd_accepts_it(self, unit):
        done = subprocess.run([tool("systemd-analyze"), "verify", str(unit)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    def test_exposure_is_low(self, unit):
        command = [tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True)
        if "unrecognized option" in done.stderr:
            pytest.skip("systemd before 250")
        assert done.returncode == 0, done.stdout[-300:]

    def test_command_is_one_that_the_server_takes(self):
        (line,) = re.findall(r"^ExecStart=(.*)$", (DEPLOY / "nny.service").read_text(), re.MULTILINE)
        words = shlex.split(line)
        assert words[:2] == ["/opt/nny/nny", "serve"]
        assert flags(words) <= options_of_serve()
        assert words[words.index("--host") + 1] == "127.0.0.1"
