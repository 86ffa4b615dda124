"""The annotation server on the command line: ``nny serve``."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import sys
from pathlib import Path

import fire
import uvicorn
from monailabel.config import settings
from scripts.datalists import NIFTI
from scripts.prepare.phantom import write_phantom_cohort
from scripts.workflows import DEMO_RUN

APP = Path(__file__).resolve().parent
PHANTOMS = Path("work/serve/phantoms")


def serve(
    studies: str | None = None,
    run: str = str(DEMO_RUN),
    clinical: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_remote: bool = False,
) -> None:
    """Serve a network to annotation clients such as 3D Slicer, until Ctrl+C.

    Example: nny serve --studies scans --run runs/first --clinical patients.xlsx

    Args:
        studies: folder of NIfTI files, or one that `prepare` wrote; the server adds datastore_v2.json and labels/ to
            it. Without it, four synthetic patients are written to work/serve/ and served.
        run: folder of the run whose network segments; by default the demo network, trained on synthetic patients.
        clinical: table (xlsx or csv) with the patients' clinical variables; an image belongs to the patient whose id is
            its file name without suffix. Without it nothing is known of them.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        allow_remote: listen on an address that other computers reach. There is no authentication.
    """
    _check_host(host, allow_remote)
    listener = _bind(host, port)
    port = listener.getsockname()[1]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if studies is None:
        clinical = clinical or _table_of_phantoms(run)
        studies = str(_phantoms())
    conf = {"run": run} | ({} if clinical is None else {"clinical": clinical})

    settings.MONAI_LABEL_APP_DIR = str(APP)
    settings.MONAI_LABEL_STUDIES = str(images_folder(studies))
    settings.MONAI_LABEL_APP_CONF = conf
    settings.MONAI_LABEL_SERVER_PORT = port
    settings.MONAI_LABEL_DATASTORE_FILE_EXT = [f"*{suffix}" for suffix in NIFTI]
    settings.MONAI_LABEL_CORS_ORIGINS = [address]  # else any web page the user visits could read from the server
    from monailabel.app import app  # it reads the settings when it is imported
    from monailabel.interfaces.utils.app import app_instance

    app_instance()  # now, so that a bad argument ends in our message and not in the server's traceback
    server = _Server(uvicorn.Config(app, log_level="info"))
    server.ready = (
        f"Ready. 3D Slicer: give {address} to the MONAI Label module. Browser: {address}/info/ says what is served. "
        "Ctrl+C stops the server."
    )
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        print("Stopped.")


def images_folder(studies: str) -> Path:
    """The folder that holds the images of some studies.

    Args:
        studies: folder of NIfTI files, or one that `prepare` wrote.

    Returns:
        Its absolute path.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no NIfTI file in it.
    """
    folder = Path(studies).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{studies} is not a folder; --studies takes a local folder of NIfTI files.")
    if (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir():
        folder = folder / "imagesTr"
    if not any(file.name.endswith(NIFTI) for file in folder.iterdir()):
        raise ValueError(f"{folder} holds no NIfTI file ({' or '.join(NIFTI)}). Give another folder by --studies.")
    return folder


class _Server(uvicorn.Server):
    """Prints a line once requests are answered."""

    ready = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self.ready, flush=True)


def _check_host(host: str, allow_remote: bool) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        loopback = False
    if not loopback and not allow_remote:
        raise ValueError(
            f"{host} can be reached from other computers, and the server has no authentication: whoever reaches it "
            "reads and changes the studies. Keep --host 127.0.0.1 (from elsewhere: ssh -L 8000:127.0.0.1:8000 <this "
            "computer>), or add --allow-remote."
        )


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded; a client is refused until the server listens on it."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ValueError(f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another --port.") from None
    return listener


def _phantoms() -> Path:
    """The synthetic cohort, written at first use."""
    if not PHANTOMS.is_dir():
        part = PHANTOMS.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write_phantom_cohort(str(part), cases=4, layout="msd", seed=1)  # the demo network learned from seed 0
        part.rename(PHANTOMS)
    return PHANTOMS


def _table_of_phantoms(run: str) -> str | None:
    """The table of the synthetic cohort, for a network that takes it."""
    from monailabel_app.lib.infers.bundle import read_config, takes_clinical

    config = read_config(Path(run).expanduser().resolve())
    return str((PHANTOMS / "clinical.csv").resolve()) if takes_clinical(config) else None


if __name__ == "__main__":
    try:
        fire.Fire(serve, name="nny serve")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"nny: {error}")
