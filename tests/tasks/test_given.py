"""What a policy is given for an episode: contract, JSON form, errors that name what is known, the wire."""

from dataclasses import replace

import numpy as np
import pytest

from flowhand.contracts.data.tasks import SOURCE, TASK, given, packed, unpacked, vectors_of
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.control.controller import Controller
from flowhand.deploy.server.session import Session

TEXTS = ("open the door", "close the door", "press the button")
INDEX = Feature((3,), "float32", "", kind=TASK, texts=TEXTS)
VECTORS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
SENTENCE = Feature((5,), "float32", "", kind=TASK, texts=TEXTS, vectors=packed(VECTORS))
FROM = Feature((2,), "float32", "", kind=SOURCE, names=("first", "second"))
STATE = Feature((2,), "float32", "m")


def spec_of(**added):
    return Spec({"state": STATE, **added}, Feature((2,), "float32", "m"), 0.1)


@pytest.mark.parametrize("task", [INDEX, SENTENCE])
def test_the_specification_goes_to_json_and_back(task):
    spec = spec_of(task=task, source=FROM)
    assert Spec.from_dict(spec.to_dict()) == spec
    assert list(spec.sensed) == ["state"]
    assert list(spec.recorded.observation) == ["state"]


def test_vectors_are_the_same_numbers_after_packing():
    assert (unpacked(packed(VECTORS), 3, 5) == VECTORS).all()
    assert (vectors_of(SENTENCE) == VECTORS).all()
    assert (vectors_of(INDEX) == np.eye(3)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": None}, "1 to 1000 texts"),
        ({"texts": ("a", "a", "b")}, "occurs twice"),
        ({"texts": ("a", "b")}, "3 values and 2 texts"),
        ({"vectors": "&&"}, "not base64"),
        ({"vectors": packed(VECTORS)}, "60 bytes, expected 36"),
        ({"vectors": packed(np.full((3, 3), np.nan))}, "NaN"),
        ({"kind": "state"}, "only the task has"),
        ({"dtype": "float64"}, "a vector in float32"),
    ],
)
def test_a_wrong_task_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(INDEX, **change)


def test_a_source_needs_names_that_differ_and_its_own_name():
    with pytest.raises(ValueError, match="all different"):
        replace(FROM, names=("a", "a"))
    with pytest.raises(ValueError, match="is of kind 'source'"):
        spec_of(other=FROM)


@pytest.mark.parametrize("task", [INDEX, SENTENCE])
@pytest.mark.parametrize("number", range(3))
def test_a_known_text_gives_its_vector(task, number):
    assert (given({"task": task}, TEXTS[number])[TASK] == vectors_of(task)[number]).all()


def test_a_source_is_chosen_by_name_and_the_only_ones_are_taken():
    assert given({"source": FROM}, source="second")[SOURCE].tolist() == [0, 1]
    assert given({"source": replace(FROM, shape=(1,), names=("a",))})[SOURCE].tolist() == [1]
    assert given({"task": replace(INDEX, shape=(1,), texts=("a",))})[TASK].tolist() == [1]
    assert given({"state": STATE}) == {}


def test_a_task_names_the_source_where_statistics_are_of_each_task():
    each = replace(FROM, names=TEXTS[:2])
    assert given({"source": each}, TEXTS[1])[SOURCE].tolist() == [0, 1]
    assert given({"task": INDEX, "source": each}, TEXTS[1])[SOURCE].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("observation", "options", "message"),
    [
        ({"task": INDEX}, {}, "must be told its task"),
        ({"task": SENTENCE}, {"task": "open a door"}, "nearest: 'open the door'.*text model"),
        ({"task": INDEX}, {"task": "open a door"}, "nearest: 'open the door'.*words=sentence"),
        ({"state": STATE}, {"task": "open the door"}, "not told its task"),
        ({"state": STATE}, {"source": "first"}, "one set of statistics"),
        ({"source": FROM}, {}, "needs its source"),
        ({"source": FROM}, {"source": "frist"}, "'frist' is unknown, one of first"),
        ({"task": SENTENCE}, {"task": "x", "text_model": lambda text: np.zeros(4)}, r"gives \(4,\)"),
    ],
)
def test_what_is_missing_or_unknown_is_one_line_that_names_the_nearest(observation, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        given(observation, **options)
    assert "\n" not in str(caught.value)


def test_a_text_model_gives_the_vector_of_a_new_text():
    model = {"a new one": VECTORS[2]}.__getitem__
    assert (given({"task": SENTENCE}, "a new one", text_model=model)[TASK] == VECTORS[2]).all()


class Told:
    """A planner whose action is what it was given."""

    chunk, noise_shape, continues = ChunkConfig(2, 4, 2), (4, 2), {}

    def __init__(self, task=INDEX, **added):
        self.spec = spec_of(task=task, **added)

    def plan(self, observation, noise, prefix=None):
        told = observation["task"][:, -1]
        side = told[:, :1] - told[:, 1:2] + (10 * observation["source"][:, -1, 1:] if "source" in observation else 0)
        return np.repeat(np.concatenate([side, side], 1)[:, None], 4, axis=1)


def test_a_controller_tells_each_lane_its_own_task_to_the_end_of_the_episode():
    controller = Controller(Told(), inference_batch=4)
    for lane, text in enumerate(TEXTS):
        controller.reset(lane, task=text)
    for _ in range(5):
        actions = controller.act({lane: {"state": np.zeros(2)} for lane in range(3)})
        assert [actions[lane][0] for lane in range(3)] == [1, -1, 0]
    controller.reset(0, task=TEXTS[1])
    assert controller.act({0: {"state": np.zeros(2)}})[0][0] == -1
    with pytest.raises(ValueError, match="must be told its task"):
        controller.reset(0)


def test_a_controller_gives_its_source_and_its_text_model():
    controller = Controller(Told(SENTENCE, source=FROM), text_model=lambda text: VECTORS[1])
    controller.reset(task="something else", source="second")
    expected = VECTORS[1][0] - VECTORS[1][1] + 10
    assert controller.step({"state": np.zeros(2)})[0] == pytest.approx(expected)


def test_a_prompt_reaches_the_policy_and_holds_until_another_one_comes():
    session, state = Session(Told(source=FROM)), {"state": np.zeros(2, np.float32)}
    first = session.read({**state, "prompt": TEXTS[1], "source": "second"})
    assert first["task"].tolist() == [[0, 1, 0]] * 2
    assert first["source"].tolist() == [[0, 1]] * 2
    assert session.read(state)["task"].tolist() == [[0, 1, 0]] * 2
    assert session.read({**state, "prompt": TEXTS[0]})["task"].tolist() == [[1, 0, 0]] * 2
    with pytest.raises(ValueError, match="none that the policy knows"):
        session.read({**state, "prompt": "dance"})
    assert session.read(state)["task"].tolist() == [[1, 0, 0]] * 2  # the refused one changed nothing


def test_a_session_takes_vectors_from_a_planner_at_the_other_end_and_needs_one_or_the_other():
    session, state = Session(Told()), {"state": np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match="must be told its task"):
        session.read(state)
    histories = {**state, "task": np.repeat(np.eye(3, dtype=np.float32)[2:], 2, axis=0)}
    assert session.read(histories)["task"].tolist() == [[0, 0, 1]] * 2
    assert session.read({**state, "prompt": TEXTS[0]})["task"].tolist() == [[1, 0, 0]] * 2
