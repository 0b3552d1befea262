"""`resnet-service ui`: the page in the browser."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import click


@click.command()
@click.option("--service", "url", default="http://localhost:8000", help="The service that the page asks.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every interface.")
@click.option("--port", type=click.IntRange(0, 65535), default=8501, help="Port to listen on.")
def ui(url: str, host: str, port: int) -> None:
    """Serve a page for people: upload images, see what they show, measure the model.

    It asks a running service, which it may be on another machine than, with the API key in
    RESNET_SERVICE_API_KEY where there is one.

    \b
    Examples:
      resnet-service ui
      resnet-service ui --service http://gpu-host:8000 --port 9000
    """
    if find_spec("streamlit") is None:
        raise click.ClickException("the page needs Streamlit: pip install 'resnet-service[ui]'")
    page = Path(__file__).parents[1] / "ui" / "page.py"
    command = [sys.executable, "-m", "streamlit", "run", str(page), "--server.headless", "true"]
    options = ["--server.address", host, "--server.port", str(port), "--browser.gatherUsageStats", "false"]
    options += ["--client.toolbarMode", "viewer"]  # without what is for those who write such pages
    os.environ["RESNET_SERVICE_URL"] = url
    os.execv(sys.executable, [*command, *options])  # noqa: S606
