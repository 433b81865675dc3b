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


def test_styles_stack_and_move() -> None:
    both = stack([style(), Style.neutral()]).to(torch.device("cpu"))
    assert both.offset.shape == (2, *TABLE)
    assert both.code.shape == (2, CODE_LENGTH)
    assert torch.equal(both.gain[0], style().gain)
    assert float(both.spread[1].abs().sum()) == 0
