"""Plain FastAPI: one route that decodes and classifies one image, in Starlette's thread pool."""

from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

from load_tests.peers.servers.resnet import PORT, Classifier

app = FastAPI()
classifier = Classifier()


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, Any]:
    """Classify one upload."""
    return classifier.classify(classifier.decode(file.file)[None])[0]


if __name__ == "__main__":
    uvicorn.run(app, port=PORT, access_log=False)
