import torch

from medsynth_common.style import CODE_LENGTH, TABLE, Style, stack


def style() -> Style:
    draw = torch.Generator().manual_seed(1)
    table = torch.rand(3, *TABLE, generator=draw)
    code = torch.rand(CODE_LENGTH, generator=draw)
    return Style(offset=table[0], gain=table[1], spread=table[2], code=code)


def test_a_style_travels_as_its_parts() -> None:
    first = style()
    assert first.tensors().keys() == {"offset", "gain", "spread", "code"}
    again = Style.from_tensors({**first.tensors(), "more": torch.zeros(1)})
    assert all(torch.equal(again.tensors()[name], t) for name, t in first.tensors().items())
    form = {name: t.shape for name, t in Style.neutral().tensors().items()}
    assert form == {name: t.shape for name, t in first.tensors().items()}


def test_patients_differ_by_the_spread_alone() -> None:
    site, draw = style(), torch.Generator().manual_seed(2)
    patients = [site.patient(draw) for _ in range(4000)]
    offsets = torch.stack([one.offset for one in patients])
    assert bool((offsets >= 0).all())
    far = site.offset > 3 * site.spread  # those that the floor at 0 does not touch
    assert bool(far.any())
    assert torch.allclose(offsets.mean(0)[far], site.offset[far], atol=0.03)
    assert torch.allclose(offsets.std(0)[far], site.spread[far], atol=0.03)
    assert all(one.gain is site.gain and one.code is site.code for one in patients)


def test_the_same_draw_is_the_same_patient() -> None:
    first, again = (style().patient(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.offset, again.offset)


def test_styles_stack_and_move() -> None:
    both = stack([style(), Style.neutral()]).to(torch.device("cpu"))
    assert both.offset.shape == (2, *TABLE)
    assert both.code.shape == (2, CODE_LENGTH)
    assert torch.equal(both.gain[0], style().gain)
    assert float(both.spread[1].abs().sum()) == 0
