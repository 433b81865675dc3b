import torch

from medsynth_common.tensors import state_of, under
from medsynth_server.model import Model
from tiny_run import public_model, same_tensors, tiny_config

CPU = torch.device("cpu")


def test_the_same_seed_gives_the_same_weights_and_disturbs_no_other_draw() -> None:
    networks = tiny_config().networks
    before = torch.get_rng_state()
    one, same, other = (Model.fresh(networks, seed=seed).tensors for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_tensors(one, same)
    assert not same_tensors(one, other)


def test_networks_are_built_with_the_models_weights() -> None:
    model = public_model()
    for name, network in (
        ("generator", model.generator(CPU)),
        ("segmenter", model.segmenter(CPU)),
        ("critic", model.critic(CPU)),
    ):
        assert same_tensors(state_of(network), under(name, model.tensors))


def test_updating_leaves_the_old_model_as_it_was() -> None:
    model = public_model()
    new = model.updated({"extra.x": torch.ones(1)})
    assert "extra.x" in new.tensors
    assert "extra.x" not in model.tensors
    assert new.part("extra").keys() == {"extra.x"}


def test_a_site_that_released_nothing_has_the_public_style() -> None:
    model = public_model()
    public = model.prior.style()
    assert same_tensors(model.style("site-9").tensors(), public.tensors())
    code = torch.full_like(public.code, 0.5)
    own = model.updated({"style.site-9.code": code})
    assert torch.equal(own.style("site-9").code, code)
    assert torch.equal(own.style("site-9").offset, public.offset)
    assert torch.equal(own.style("site-91").code, public.code)
