"""A web page for image classification, which calls a running service.

Streamlit executes this file from top to bottom whenever an element of the page changes.
"""

import math
import os
from dataclasses import asdict
from typing import Final

import pandas as pd
import streamlit as st

from resnet_service.client import APIError, Client, ServiceUnavailableError
from resnet_service.images.examples import example_photographs
from resnet_service.images.file_names import SUFFIXES
from resnet_service.schemas import InfoResponse
from resnet_service.settings import PAGE_API_KEY_VARIABLE, PAGE_URL_VARIABLE

DEFAULT_URL: Final = "http://localhost:8000"

# Without HEIF, which Streamlit cannot show.
_IMAGE_TYPES: Final = sorted(
    suffix for image_format, suffixes in SUFFIXES.items() if image_format != "HEIF" for suffix in suffixes
)
_STAGES: Final = ("decode", "queue", "device", "total")


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="Image classification", layout="wide")
    st.title("Image classification")
    # The environment sets the URL: if visitors could, the page would send the API key to any address.
    url = os.environ.get(PAGE_URL_VARIABLE, DEFAULT_URL)
    st.sidebar.caption(f"Service: {url}")
    key = os.environ.get(PAGE_API_KEY_VARIABLE)
    # One attempt, so that an unavailable service is reported immediately.
    with Client(url, api_key=key, attempts=1) as client, Client(url, api_key=key) as patient_client:
        info = _show_model(client)
        if info is None:
            return
        images = st.file_uploader(
            "Images",
            type=_IMAGE_TYPES,
            accept_multiple_files=True,
            # Streamlit counts in MiB; the service rejects what is above its limit and not above this one.
            max_upload_size=math.ceil(info.limits.max_upload_bytes / 2**20),
        )
        photographs = example_photographs()
        samples = st.pills("Sample images", photographs, selection_mode="multi")
        for name in samples:
            _show_result(patient_client, name, photographs[name])
        for image in images:
            _show_result(patient_client, image.name, image.getvalue())
        st.divider()
        if st.button("Benchmark the model", help="Calls /bench, which uses the device for some seconds."):
            _show_benchmark(client)


def _show_model(client: Client) -> InfoResponse | None:
    """Show the model in the sidebar and return what is served; None after an error on the page."""
    try:
        info = client.info()
    except ServiceUnavailableError as error:
        st.error(f"Service unavailable: {error}")
        st.caption("Start it with `resnet-service serve`, or start this page with `--url` of another one.")
        return None
    except APIError as error:
        st.error(_describe(error))
        return None
    for name, value in (
        ("Model", info.model),
        ("Device", info.device),
        ("Precision", info.precision),
    ):
        st.sidebar.caption(name)
        st.sidebar.markdown(f"`{value}`")  # st.metric would cut off a long name
    return info


def _show_result(client: Client, name: str, image: bytes) -> None:
    """Show an image with its classes as bars and the time of each stage, or an error.

    Sends a request whenever the page is drawn: a cached result could be that of a previous model, which
    nothing in a response distinguishes from a new one of the same name.
    """
    left, right = st.columns([1, 2])
    try:
        with st.spinner(f"Classifying {name}"):
            response = client.predict(image, name=name)
    except APIError as error:
        st.error(f"{name}: {_describe(error)}")
        return
    except ServiceUnavailableError as error:
        st.error(f"{name}: service unavailable: {error}")
        return
    left.image(image, caption=name)
    best = response.predictions[0]
    right.subheader(f"{best.label}, {best.probability:.1%}")
    for prediction in response.predictions:
        right.progress(prediction.probability, f"{prediction.label}: {prediction.probability:.1%}")
    times: dict[str, float] = response.timing_ms.model_dump()
    right.caption(" · ".join(f"{stage} {times[stage]:.1f} ms" for stage in _STAGES))


def _describe(error: APIError | ServiceUnavailableError) -> str:
    """Return the message of an error; for API keys, the setting of this page instead of the HTTP header."""
    if not isinstance(error, APIError) or error.status not in (401, 403):
        return str(error)
    if PAGE_API_KEY_VARIABLE not in os.environ:
        return f"The service requires an API key: set {PAGE_API_KEY_VARIABLE} and start this page again."
    return f"The service rejects the API key in {PAGE_API_KEY_VARIABLE}: {error}."


def _show_benchmark(client: Client) -> None:
    try:
        with st.spinner("Measuring"):
            rows = [asdict(row) for row in client.bench()]
    except (APIError, ServiceUnavailableError) as error:
        st.error(f"The benchmark failed: {_describe(error)}")
        return
    table = pd.DataFrame(rows).set_index("batch_size")
    rates, latencies = st.columns(2)
    rates.subheader("Images per second")
    rates.line_chart(table["images_per_second"], x_label="batch size")
    latencies.subheader("Milliseconds per batch")
    latencies.line_chart(table[["p50_ms", "p99_ms"]], x_label="batch size")
    st.dataframe(table.round(1))


main()
