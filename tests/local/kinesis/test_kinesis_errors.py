from typing import get_args

import botocore.session
import pytest

from local.kinesis.errors import CODES, KinesisError
from local.kinesis.faults import Operation

MODEL = botocore.session.get_session().get_service_model("kinesis")


@pytest.mark.parametrize("operation", [*get_args(Operation), "CreateStream", "ListStreams"])
def test_errors_are_those_of_the_service_model(operation: str) -> None:
    """Each error that the model gives an operation can be answered."""
    names = {shape.name for shape in MODEL.operation_model(operation).error_shapes}
    # The model's name for what the service sends as InternalFailure.
    assert names - {"InternalFailureException"} <= set(CODES)


def test_only_faults_of_the_service_are_not_a_400() -> None:
    """JSON 1.1 answers every fault of the client with 400, a refused signature included."""
    others = {code: status for code, (status, _) in CODES.items() if status != 400}
    assert others == {"InternalFailure": 500, "ServiceUnavailable": 503}


def test_a_refusal_has_its_usual_message_unless_it_has_a_better_one() -> None:
    """The message can be given where more is known."""
    assert KinesisError("InternalFailure").message == "Internal Service Failure"
    assert KinesisError("InternalFailure", "other").message == "other"
    assert str(KinesisError("InternalFailure")) == "InternalFailure: Internal Service Failure"
