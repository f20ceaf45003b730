"""Every kind of world follows Gymnasium's API, and its spaces say what its features say."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import ENVS, AlohaConfig, DetourConfig, GymnasiumConfig, MetaWorldConfig, PushTConfig, SO101Config, WebConfig
from envs.spaces import FeatureSpace
from flowhand.contracts.features import Feature
from tests.envs.web.browsers import require_browser

WORLDS = {
    "aloha": [AlohaConfig()],
    "detour": [DetourConfig()],
    "gymnasium": [GymnasiumConfig(id="CartPole-v1", success_return=195.0), GymnasiumConfig(id="Reacher-v5")],
    "metaworld": [MetaWorldConfig(task="reach-v3")],
    "pusht": [PushTConfig(observation="keypoints"), PushTConfig(observation="image")],
    "so101": [SO101Config(observes="state")],
    "web": [WebConfig(task="click-button")],
}
# What Gymnasium advises against, and a world may do all the same.
ADVICE = (
    "Not able to test alternative render modes",
    "A Box (observation|action) space (minimum|maximum) value is",
    "For Box action spaces, we recommend",
)


def test_every_kind_of_world_is_checked():
    assert set(WORLDS) == set(ENVS)


def require_installed(config: envs.EnvConfig) -> None:
    """Skips the test where the world's extra or its browser is not there."""
    for kind, module in (("aloha", "gym_aloha"), ("pusht", "gym_pusht")):
        if config.kind == kind:
            pytest.importorskip(module, reason=f"the extra is not installed: pip install 'flowhand[{kind}]'")
    if config.kind == "web":
        require_browser()


@pytest.mark.filterwarnings(*(f"ignore:.*{text}" for text in ADVICE))
@pytest.mark.parametrize("config", [c for each in WORLDS.values() for c in each], ids=lambda c: envs.name_of(c))
def test_a_world_passes_gymnasiums_own_check(config):
    require_installed(config)
    if config.kind == "gymnasium" and config.success_return is None:
        config.success_return = 0.0
    env = envs.make(config)
    try:
        check_env(env, skip_render_check=True)
        observation, _ = env.reset(seed=3)
        assert env.observation_space.contains(observation)
        assert env.action_space.contains(env.action_space.sample())
    finally:
        env.close()


def test_a_space_holds_what_the_feature_holds():
    space = FeatureSpace(Feature((2,), "float32", "", (-1.0, -1.0), (1.0, 1.0), choices=(0, 3)))
    space.seed(0)
    samples = np.array([space.sample() for _ in range(100)])
    assert set(samples[:, 1]) == {0, 1, 2}
    assert len(set(samples[:, 0])) == 100
    assert all(space.contains(sample) for sample in samples)
    assert not space.contains(np.array([0, 0.5], np.float32))
    assert not space.contains(np.array([2, 0], np.float32))
    assert not space.contains(np.array([0, 3], np.float32))
