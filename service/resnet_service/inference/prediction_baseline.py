"""What a model usually predicts: recorded from a service, and compared with what it predicts later.

A baseline is a JSON file. It knows classes by their names in the metrics, so that it also applies to another
version of the model.
"""

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resnet_service.errors import BaselineError
from resnet_service.files import describe_os_error, read_small_file
from resnet_service.hints import summarize_errors

MAX_CLASSES: Final = 100
"""More classes make the comparison noisy: each needs images in both distributions."""
_MAX_BYTES: Final = 10_000_000

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ModelBaseline(BaseModel):
    """The predictions of one model.

    Attributes:
        images: number of images that were classified.
        shares: share of the images, 0 to 1, by the name of their best class; the most frequent classes only.
        probability: mean probability of the best class, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=1)
    shares: dict[str, Share] = Field(min_length=1, max_length=MAX_CLASSES)
    probability: Share

    @property
    def other_share(self) -> float:
        """Share of the images with other classes."""
        return max(0.0, 1 - sum(self.shares.values()))

    @model_validator(mode="after")
    def _check_sum(self) -> "ModelBaseline":
        if sum(self.shares.values()) > 1 + 1e-6:
            raise ValueError("the sum of the shares is more than 1")
        return self


class Baseline(BaseModel):
    """The baselines of the models of a service, by name, as in the file.

    baseline = read_baseline(Path("baseline.json"))
    baseline.models["resnet50"].shares["Samoyed"]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    recorded_at: str
    models: dict[str, ModelBaseline]


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file. Raises BaselineError if it cannot be read or is not valid."""
    try:
        content = read_small_file(path, _MAX_BYTES)
    except (OSError, ValueError) as error:
        raise BaselineError(f"the baseline {path} cannot be read: {describe_os_error(error)}") from error
    try:
        return Baseline.model_validate(json.loads(content))
    except ValidationError as error:
        raise BaselineError(f"the baseline {path} is invalid: {summarize_errors(error.errors())}") from error
    except (ValueError, RecursionError) as error:
        raise BaselineError(f"the baseline {path} is not JSON") from error
