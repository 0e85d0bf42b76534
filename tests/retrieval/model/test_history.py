"""History encoders: what a position has seen, and what it must not see."""

import pytest
import torch
from torch import Tensor

from rec_ray.retrieval.model.history import CACHED_TIMELINES, MeanHistory, TransformerHistory

SIZE, LENGTH = 8, 6


def encoder(kind: str) -> MeanHistory | TransformerHistory:
    torch.manual_seed(0)
    if kind == "mean":
        return MeanHistory(SIZE, event_types=3, time_gaps=True).eval()
    return TransformerHistory(SIZE, LENGTH, event_types=3, time_gaps=True, layers=2, heads=2, norm=kind).eval()


def timelines(b: int = 3, length: int = LENGTH) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(b, length, SIZE, generator=generator),
        torch.randint(0, 3, (b, length), generator=generator),
        torch.randint(0, 10**6, (b, length), generator=generator),
        torch.full((b,), length),
    )


KINDS = pytest.mark.parametrize("kind", ["mean", "pre", "post"])


@KINDS
@pytest.mark.parametrize("changed", range(LENGTH))
@pytest.mark.parametrize("part", ["vector", "event_type", "gap"])
def test_a_position_has_seen_exactly_the_events_before_it(kind: str, changed: int, part: str) -> None:
    history = encoder(kind)
    vectors, event_type, gap, length = timelines()
    before = history(vectors, event_type, gap, length)
    if part == "vector":
        vectors[:, changed] += 1 + torch.arange(SIZE)
    elif part == "event_type":
        event_type[:, changed] = (event_type[:, changed] + 1) % 3
    else:
        gap[:, changed] = 2**25
    after = history(vectors, event_type, gap, length)

    assert before.shape == (3, LENGTH + 1, SIZE)
    torch.testing.assert_close(after[:, : changed + 1], before[:, : changed + 1], rtol=0, atol=0)
    assert (after[:, changed + 1 :] - before[:, changed + 1 :]).abs().amax(-1).min() > 1e-6


@KINDS
def test_padding_changes_nothing(kind: str) -> None:
    history = encoder(kind)
    vectors, event_type, gap, _ = timelines(2)
    length = torch.tensor([2, 4])
    padded = history(vectors, event_type, gap, length)
    vectors[0, 2:], vectors[1, 4:] = 100.0, -100.0
    gap[0, 2:], event_type[1, 4:] = 5, 0
    other = history(vectors, event_type, gap, length)
    for row, n in enumerate(length.tolist()):
        torch.testing.assert_close(other[row, : n + 1], padded[row, : n + 1])
        alone = history(
            vectors[row : row + 1, :n], event_type[row : row + 1, :n], gap[row : row + 1, :n], length[row : row + 1]
        )
        torch.testing.assert_close(alone[0], padded[row, : n + 1])
    assert torch.isfinite(padded).all()


@KINDS
def test_a_timeline_without_events_has_one_position(kind: str) -> None:
    history = encoder(kind)
    empty = torch.zeros(2, 0, dtype=torch.long)
    out = history(torch.zeros(2, 0, SIZE), empty, empty, torch.zeros(2, dtype=torch.long))
    assert out.shape == (2, 1, SIZE)
    torch.testing.assert_close(out[0], out[1])


def test_the_transformer_tells_the_order_of_events_and_the_mean_does_not() -> None:
    vectors, event_type, gap, length = timelines()
    flipped = (vectors.flip(1), event_type.flip(1), gap.flip(1), length)
    mean = encoder("mean")
    torch.testing.assert_close(mean(vectors, event_type, gap, length)[:, -1], mean(*flipped)[:, -1])
    transformer = encoder("post")
    difference = transformer(vectors, event_type, gap, length)[:, -1] - transformer(*flipped)[:, -1]
    assert difference.abs().max() > 1e-3


def test_a_timeline_longer_than_the_model_is_refused_with_what_to_do() -> None:
    history = encoder("post")
    vectors, event_type, gap, length = timelines(length=LENGTH + 1)
    with pytest.raises(ValueError, match=r"7 events.*built for 6.*history_length"):
        history(vectors, event_type, gap, length)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must divide"):
        TransformerHistory(8, 4, heads=3)
    with pytest.raises(ValueError, match="'pre' or 'post'"):
        TransformerHistory(8, 4, norm="batch")


@pytest.mark.parametrize("kind", ["mean", "post"])
def test_many_timelines_end_as_each_does_alone(kind: str) -> None:
    made, count = encoder(kind), 2 * CACHED_TIMELINES + 1
    vectors, event_type, gap, _ = timelines(count)
    length = torch.arange(count) % (LENGTH + 1)
    table, rows = vectors.flatten(0, 1), torch.arange(count * LENGTH).view(count, LENGTH)
    every = made.at_end(table, rows, event_type, gap, length)
    assert len(every) == count
    for place in (0, CACHED_TIMELINES - 1, CACHED_TIMELINES, count - 1):
        one = slice(place, place + 1)
        torch.testing.assert_close(every[one], made.at_end(table, rows[one], event_type[one], gap[one], length[one]))
    assert made.at_end(table, rows[:0], event_type[:0], gap[:0], length[:0]).shape == (0, every.shape[1])


@pytest.mark.parametrize("kind", ["mean", "post", "pre"])
def test_the_end_alone_is_the_last_position_of_the_whole(kind: str) -> None:
    made, (vectors, event_type, gap, _) = encoder(kind), timelines(4)
    length = torch.tensor([0, 1, 4, LENGTH])
    whole = made(vectors, event_type, gap, length)
    table, rows = vectors.flatten(0, 1), torch.arange(4 * LENGTH).view(4, LENGTH)
    torch.testing.assert_close(made.at_end(table, rows, event_type, gap, length), whole[torch.arange(4), length])
    nothing = made.at_end(table, rows[:, :0], event_type[:, :0], gap[:, :0], torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(nothing, whole[:1, 0].expand(4, -1))
