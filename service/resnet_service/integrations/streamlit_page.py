"""The page; `streamlit run` executes it from top to bottom whenever something on it changes."""

import os
from dataclasses import asdict
from typing import Final

import pandas as pd
import streamlit as st

from resnet_service.client import APIError, Client, ServiceUnavailableError
from resnet_service.schemas import PredictResponse

DEFAULT_URL: Final = "http://localhost:8000"
URL_VARIABLE: Final = "RESNET_SERVICE_URL"
KEY_VARIABLE: Final = "RESNET_SERVICE_API_KEY"
_STAGES: Final = ("decode", "queue", "device", "total")


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="resnet-service", layout="wide")
    st.title("What is in the image?")
    # From whoever started the page: a visitor's choice would have it open any address, with the key.
    url = os.environ.get(URL_VARIABLE, DEFAULT_URL)
    st.sidebar.caption(f"Service: {url}")
    # One attempt: whoever sits in front of the page is to see at once that the service is away.
    with Client(url, api_key=os.environ.get(KEY_VARIABLE), attempts=1) as client:
        _draw(client)


def _draw(client: Client) -> None:
    if not _described(client):
        return
    images = st.file_uploader(
        "Images",
        type=["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"],
        accept_multiple_files=True,
    )
    for image in images:
        _classified(client, image.name, image.getvalue())
    st.divider()
    if st.button("Measure this model", help="Runs /bench on the service: some seconds of its device's time."):
        _measured(client)


def _described(client: Client) -> bool:
    """Show in the sidebar what is served; say so on the page where nothing is."""
    try:
        info = client.info()
    except (ServiceUnavailableError, APIError) as error:
        st.error(f"The service is away: {error}")
        st.caption("Start one with `resnet-service serve`, or begin again with its address; then reload.")
        return False
    shown = {"Model": info["model"], "Device": info["device"], "Precision": info["precision"]}
    for name, value in shown.items():
        st.sidebar.metric(name, value)
    return True


def _classified(client: Client, name: str, image: bytes) -> None:
    """Show an image, its classes as bars and the time of each stage; or why there are none."""
    left, right = st.columns([1, 2])
    try:
        with st.spinner(f"Classifying {name}"):
            answer = _answer(client.url, name, image)
    except APIError as error:
        st.error(f"{name}: {error}")
        return
    except ServiceUnavailableError as error:
        st.error(f"{name}: the service is away: {error}")
        return
    left.image(image, caption=name)
    best = answer.predictions[0]
    right.subheader(f"{best.label}, {best.probability:.1%}")
    for ranked in answer.predictions:
        right.progress(ranked.probability, f"{ranked.label}: {ranked.probability:.1%}")
    times: dict[str, float] = answer.timing_ms.model_dump()
    right.caption(" · ".join(f"{stage} {times[stage]:.1f} ms" for stage in _STAGES))


@st.cache_data(max_entries=100, show_spinner=False)
def _answer(url: str, name: str, image: bytes) -> PredictResponse:
    """Ask once for each image, however often the page is drawn."""
    with Client(url, api_key=os.environ.get(KEY_VARIABLE)) as client:
        return client.predict(image, name=name)


def _measured(client: Client) -> None:
    try:
        with st.spinner("Measuring"):
            rows = [asdict(row) for row in client.bench()]
    except (APIError, ServiceUnavailableError) as error:
        st.error(f"It could not be measured: {error}")
        return
    table = pd.DataFrame(rows).set_index("batch_size")
    rates, latencies = st.columns(2)
    rates.subheader("Images a second")
    rates.line_chart(table["images_per_second"], x_label="images in a batch")
    latencies.subheader("Milliseconds a batch")
    latencies.line_chart(table[["p50_ms", "p99_ms"]], x_label="images in a batch")
    st.dataframe(table.round(1))


main()
