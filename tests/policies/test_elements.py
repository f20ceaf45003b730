"""The encoder of screens, pointers and choices: against strings compared in Python, permutations, and tasks."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.screen.fields import (
    ACTIONS,
    ELEMENTS,
    NUMBERS,
    STOP,
    STRINGS,
    WORDS,
    observation_features,
    pixel_action_feature,
)
from policies import Policy, PolicyConfig
from policies.encoders import ENCODERS, VISION
from policies.encoders.matching import KINDS, LONGEST_SPAN, matches
from policies.heads import HEADS
from policies.nets import NETS
from tests.policies.screens import FIELD, SPEC, batch_of, blank, fitted, make_policy, named_element, text

# Heads with the options that suit choices, and whether each element of a plan of theirs can be right by chance only.
CROSS_ENTROPY = {"flow": {"choices": "cross_entropy", "draws": 4}}
CROSS_ENTROPY |= {"diffusion": {"choices": "cross_entropy", "steps": 4}, "mip": {"choices": "cross_entropy"}}
CROSS_ENTROPY |= {"classification": {}, "tokens": {}}


def parts(string: str) -> list[str]:
    return [each for each in re.split(r"[^0-9A-Za-z\x80-\U0010ffff]+", string) if each]


def in_python(string: str, words: list[str]) -> dict[str, list[bool]]:
    """Which words match the string, by the definition in words."""
    whole = [string == word and word != "" for word in words]
    span = [
        any(
            string == " ".join(words[i : i + n])
            for n in range(2, LONGEST_SPAN + 1)
            if all(words[i : i + n]) and i + n <= len(words)
        )
        for i in range(len(words))
    ]
    part = [bool(parts(word)) and parts(word)[0].lower() in parts(string.lower()) for word in words]
    return {"whole": whole, "span": span, "part": part}


STRINGS_TRIED = [
    "",
    "Okay",
    "okay",
    "No way",
    "no way",
    "btn-submit big",
    "a b c d",
    "a b c d e",
    "Ünï cödé",
    "b",
    "1 2",
]
WORDS_TRIED = ["Okay", "no", "way", "a", "b", "c", "d", "e", "submit", '"Okay"', "Ünï", "--", "1", "2", "No", "ok"]


def test_matches_are_those_of_strings_compared_in_python():
    strings = np.stack([text(each, each[::-1]) for each in STRINGS_TRIED])
    words = [*WORDS_TRIED, "", ""]
    found = matches(torch.from_numpy(strings)[None], torch.from_numpy(text(*words))[None])[0]
    found = found.unflatten(-1, (len(KINDS), 2)).bool()
    assert found.shape == (len(STRINGS_TRIED), len(words), len(KINDS), 2)
    for i, string in enumerate(STRINGS_TRIED):
        expected = in_python(string, words)
        for k, kind in enumerate(KINDS):
            hits = {words[j] for j in range(len(words)) if expected[kind][j]}
            assert found[i, :, k, 0].tolist() == expected[kind], (string, kind, hits)
    assert found[:, :, :, 1].any()
    assert found[..., 0].flatten(0, 1).any(0).all()


def test_random_strings_match_as_in_python():
    random = np.random.default_rng(0)
    letters = list("ab A1-")
    strings = ["".join(random.choice(letters, random.integers(0, 6))) for _ in range(300)]
    words = ["".join(random.choice(list("abA1-"), random.integers(0, 4))) for _ in range(30)]
    count = sum(word != "" for word in words)
    words = [word for word in words if word] + [""] * (30 - count)
    found = matches(torch.from_numpy(text(*strings))[None, :, None], torch.from_numpy(text(*words))[None])[0].bool()
    for i, string in enumerate(strings):
        expected = in_python(string, words)
        for k, kind in enumerate(KINDS):
            assert found[i, :, k].tolist() == expected[kind], (string, kind)
    many = torch.from_numpy(text(*strings)).reshape(3, 20, 5, -1), torch.from_numpy(text(*words)).reshape(3, 10, -1)
    assert torch.equal(matches(*many, sparse=True), matches(*many))


@pytest.fixture
def policy(randomize):
    observation, plan = named_element(8)
    policy = fitted(make_policy("flow", choices="cross_entropy"), observation, plan)
    randomize(policy)
    return policy.eval()


def shuffled(observation, order):
    """The same screens with their elements in other rows: row i was row order[i]."""
    moved = {name: observation[name][:, :, order] for name in ("element_strings", "elements")}
    return {**observation, **moved}


@pytest.mark.parametrize("head", HEADS)
def test_elements_in_other_rows_are_pointed_at_there(randomize, head):
    """Of the same noise, moved along, comes the same plan with its pointers moved along."""
    observation, plan = named_element(6)
    options = {k: v for k, v in CROSS_ENTROPY.get(head, {}).items() if k == "choices"}
    policy = fitted(make_policy(head, **options), observation, plan)
    randomize(policy)
    policy.eval()
    order = torch.randperm(ELEMENTS)
    noise = torch.randn(6, *policy.noise_shape)
    moved = noise.clone()
    for field in policy.fields.pointing:
        if field.rows == "elements":
            moved[..., field.columns] = noise[..., field.columns][..., order]
    with torch.no_grad():
        codes = policy.head.sample(policy.net, noise, policy.encode(observation))
        others = policy.head.sample(policy.net, moved, policy.encode(shuffled(observation, order)))
    for field in policy.fields.each:
        part, other = codes[..., field.columns], others[..., field.columns]
        expected = part[..., order] if field.rows == "elements" else part
        torch.testing.assert_close(other, expected, atol=3e-4, rtol=1e-3)


def test_rows_that_are_not_there_do_not_matter_and_are_not_pointed_at(policy):
    observation, _ = named_element(8)
    noise = torch.randn(8, *policy.noise_shape)
    absent = observation["elements"][:, 0, :, 0] == 0
    other = {name: value.clone() for name, value in observation.items()}
    other["element_strings"][:, 0][absent] = torch.randint(256, (int(absent.sum()), 5, 24), dtype=torch.uint8)
    other["element_strings"][:, 0][absent, :2] = observation["words"][0, 0, 3:5]  # which could be matched
    other["elements"][:, 0, :, 1:][absent] = torch.randn(int(absent.sum()), len(NUMBERS) - 1)
    loud = noise.clone()
    for field in policy.fields.pointing:
        gone = absent if field.rows == "elements" else observation["words"][:, 0].sum(-1) == 0
        loud[..., field.columns] = torch.where(gone[:, None], 50.0, noise[..., field.columns])
    with torch.no_grad():
        one, two, three = (policy.sample(o, n) for o, n in ((observation, noise), (other, noise), (observation, loud)))
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one[..., 0], three[..., 0])
    for plans in (one, three):
        for row, plan in enumerate(plans):
            for action in plan:
                name = ACTIONS[int(action[0])]
                if name in ("click", "type", "copy", "drag", "scroll", "key"):
                    assert not absent[row, int(action[FIELD["element"]])]


def test_what_an_action_does_not_use_is_zero(policy):
    observation, _ = named_element(8)
    plans = policy.sample(observation, 5 * torch.randn(8, *policy.noise_shape)).flatten(0, 1)
    assert len({int(action[0]) for action in plans}) > 2
    assert SPEC.action.uses is not None
    for action in plans:
        uses = {0, *SPEC.action.uses[int(action[0])]}
        assert all(action[i] == 0 for i in range(8) if i not in uses)


def test_the_next_evaluation_sees_what_counts_and_blank_for_the_rest(policy):
    """The mean over kinds, each with its own fields blank, of codes whose other fields are anything."""
    fields, code = policy.fields, torch.rand(2, 3, policy.chunk_shape[1]) * 2 - 1
    kinds = len(ACTIONS)
    share = torch.rand(2, 3, kinds).softmax(-1)
    code[..., :kinds] = 2 * share - 1
    mean = torch.zeros_like(code)
    for kind in range(kinds):
        counting = fields.counting(torch.full((2, 3, 8), float(kind)))
        mean += share[..., kind : kind + 1] * fields.blank(code, counting)
    torch.testing.assert_close(policy.head.expected(code), mean)
    code[..., :kinds] = -1.0
    code[..., STOP] = 1.0
    found, neutral = policy.head.expected(code), fields.neutral.expand_as(code)
    assert torch.equal(found[..., kinds:], neutral[..., kinds:])


def test_words_have_places_and_letters_have_cases(policy):
    observation, _ = named_element(8)
    same = policy.encode(observation).vector_BE
    turned = {**observation, "words": observation["words"].clone()}
    turned["words"][:, :, :2] = turned["words"][:, :, :2].flip(2)
    capital = {**observation, "words": observation["words"].clone()}
    capital["words"][:, :, 1, 0] -= 32
    for other in (turned, capital):
        assert ((policy.encode(other).vector_BE - same).abs().amax(-1) > 1e-4).all()


def test_in_training_what_no_screen_has_is_left_out_and_nothing_changes(policy):
    observation, _ = named_element(8)
    outputs = [policy.train(mode).encode(observation) for mode in (True, False)]
    there = outputs[1].mask_BN
    assert torch.equal(outputs[0].mask_BN, there)
    torch.testing.assert_close(outputs[0].vector_BE, outputs[1].vector_BE)
    torch.testing.assert_close(outputs[0].tokens_BNW[there], outputs[1].tokens_BNW[there])


def test_an_empty_screen_is_finite(policy):
    observation = {name: torch.from_numpy(value) for name, value in blank(4).items()}
    plans = policy.sample(observation, torch.randn(4, *policy.noise_shape))
    assert plans.isfinite().all()
    for mode in (True, False):
        assert policy.train(mode).encode(observation).vector_BE.isfinite().all()


def test_a_policy_that_does_not_see_the_instruction_does_not_depend_on_it():
    observation, plan = named_element(4)
    config = make_policy("flow").config
    blind = fitted(Policy(replace(config, encoder=replace(config.encoder, words=False)), SPEC), observation, plan)
    other = {**observation, "words": torch.zeros_like(observation["words"])}
    assert torch.equal(blind.encode(observation).vector_BE, blind.encode(other).vector_BE)


def learned(head: str, options: dict, steps: int = 250, rate: float = 4e-3) -> float:
    """The share of new screens whose whole plan is right."""
    observation, plan = named_element(1500, seed=1)
    policy = fitted(make_policy(head, **options), observation, plan)
    whole, generator = batch_of(observation, plan), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), rate, fused=True)
    policy.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        rows = torch.randint(len(plan), (48,), generator=generator)
        part = batch_of({n: v[rows] for n, v in whole.observation.items()}, plan[rows.numpy()])
        policy.loss(part, generator).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    policy.eval()
    seen, wanted = named_element(100, seed=2)
    with torch.no_grad():
        got = policy.sample(seen, torch.randn(100, *policy.noise_shape)).numpy()
    choices = np.array(SPEC.action.choices) > 0
    right = (got[..., choices] == wanted[..., choices]).all((1, 2))
    near = np.abs(got[..., FIELD["dy"]] - wanted[..., FIELD["dy"]]).max(-1) < 0.05
    return float((right & near).mean())


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_types_and_clicks_what_is_named(head):
    assert learned(head, CROSS_ENTROPY.get(head, {})) > 0.9


def test_a_screenshot_joins_elements_or_stands_for_them(tiny):
    random = np.random.default_rng(0)
    image = {"screen": Feature((21, 16, 3), "uint8", "")}
    both = Spec({**SPEC.observation, **image}, SPEC.action, None)
    pixels = Spec({"words": SPEC.observation["words"], **image}, pixel_action_feature(), None)
    for spec in (both, pixels):
        config = PolicyConfig(
            ChunkConfig(1, 3, 3),
            encoder=tiny(ENCODERS, "elements"),
            net=tiny(NETS, "transformer"),
            head=tiny(HEADS, "flow", choices="cross_entropy"),
            vision=tiny(VISION, "conv", frames=1),
        )
        policy = Policy(config, spec)
        seen = {
            n: torch.from_numpy(random.integers(0, 2, (2, 1, *f.shape)).astype(f.dtype))
            for n, f in spec.observation.items()
        }
        action = torch.zeros(2, 3, spec.action.size)
        action[:, 0, 0] = ACTIONS.index("click")
        action[:, 0, 1:3] = torch.rand(2, 2) if spec is pixels else 1
        policy.fit_normalizers({n: v[:, 0] for n, v in seen.items()}, action.flatten(0, 1))
        policy.loss(batch_of(seen, action.numpy())).backward()
        assert policy.sample(seen, torch.randn(2, *policy.noise_shape)).shape == action.shape
        tokens = policy.encode(seen).tokens_BNW
        assert tokens is not None
        assert (tokens[:, -1] ** 2).sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": 2}, "encoder=elements sees a single observation: chunk.history=1, got 2"),
        ({"heads": 3}, "encoder.width=32 must be a multiple of encoder.heads=3"),
        ({"width": 0}, "encoder.width=0 must lie in 1..65536"),
        ({"without": "words"}, "encoder=elements takes words, and element_strings with elements, or neither; got"),
        ({"encoder": "state"}, "encoder=state takes float32 vectors, but the observation 'element_strings' is uint8"),
    ],
)
def test_what_the_encoder_cannot_do_is_said(tiny, change, message):
    def build():
        observation = {n: f for n, f in observation_features().items() if n != change.get("without")}
        action = SPEC.action if "without" not in change else Feature((1,), "float32", "")
        kind = change.get("encoder", "elements")
        options = {"width": change.get("width", 32), "heads": change.get("heads", 2)} if kind == "elements" else {}
        history = change.get("history", 1)
        config = PolicyConfig(
            ChunkConfig(history, 2, 2), encoder=ENCODERS[kind][0](**options), net=tiny(NETS, "transformer")
        )
        Policy(config, Spec(observation, action, None))

    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_a_net_without_pointers_takes_them_as_columns(tiny):
    observation, plan = named_element(4)
    config = replace(make_policy("regression").config, net=tiny(NETS, "mlp"))
    policy = fitted(Policy(config, SPEC), observation, plan)
    got = policy.sample(observation, torch.randn(4, *policy.noise_shape))
    there = observation["elements"][:, 0, :, 0] > 0
    for row in range(4):
        for action in got[row]:
            assert int(action[0]) == STOP or there[row, int(action[FIELD["element"]])]


def test_constants_are_those_of_the_contract():
    assert SPEC.observation["words"].shape[0] == WORDS
    assert SPEC.observation["element_strings"].shape[1] == len(STRINGS)
