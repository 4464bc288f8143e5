"""Token files under a generator's law: what was written comes back, at the cost that the law says, or is refused."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.generators.masked import MaskedConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.hub import fingerprint
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample.entropy_model import LARGEST, STEPS, WEIGHTS, EntropyModel, levels_of
from imgtok.tokenfile import TokenFile, from_bytes, stops_of, to_bytes
from imgtok.tokenizer import TokenizerConfig
from imgtok.tokens import GridLayout, SequenceLayout

from ..fuzz import outcomes
from ..tiny import CNN

LABELS = LabelConditionConfig(labels=(Label(size=3), Label(name="style", size=2)))
SIZES = {"condition": LABELS, "codebook_size": 32, "width": 16, "num_heads": 2}
MIB = 1 << 20
SEQUENCE = SequenceLayout(40)
GRID = TokenizerConfig(image_size=32, backbone=CNN, quantizer=VectorConfig(codebook_size=32, codebook_dim=4))
MAPS = replace(
    GRID,
    image_size=16,
    quantizer=ResidualConfig(
        stage=VectorConfig(codebook_size=32, codebook_dim=4, l2_norm=False),
        view=ScalesConfig(scales=(1, 3, 4), blends=2),
    ),
)


def built(config, seed: int = 0):
    """Random weights, strong enough for laws that differ from place to place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def next_token(layout=SEQUENCE, seed: int = 0) -> Generator:
    return built(GeneratorConfig(layout=layout, depth=1, mlp_hidden=16, **SIZES), seed)


@pytest.fixture(scope="module")
def tokenizer():
    return built(GRID)


@pytest.fixture(scope="module")
def model(tokenizer) -> EntropyModel:
    """Of a generator that has learned tokens of one kind: each is the one before plus 1 or 2."""
    generator, dice = next_token(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    for _ in range(60):
        tokens = learned(16, dice)
        logits = generator(tokens, LABELS.build(1).null(16))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return EntropyModel(generator, tokenizer)


@pytest.fixture(scope="module")
def by_map() -> EntropyModel:
    config = NextScaleConfig(layout=MAPS.layout, codebook_dim=4, depth=1, **SIZES)
    return EntropyModel(built(config), built(MAPS), (2, 1))


def learned(rows: int, dice: torch.Generator, count: int = 40) -> torch.Tensor:
    steps = torch.randint(1, 3, (rows, count), generator=dice)
    return (steps.cumsum(1) + torch.randint(32, (rows, 1), generator=dice)) % 32


def file_of(model: EntropyModel, tokens: torch.Tensor, layout=SEQUENCE, **changed) -> TokenFile:
    given = {"tokenizer": model.tokenizer, "size": (32, 32), "layout": layout, "codebook_size": 32, "tokens": tokens}
    return TokenFile(**given | changed)


def drawn(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(32, (count,), generator=torch.Generator().manual_seed(seed))


def fresh(model: EntropyModel) -> EntropyModel:
    """Another reader, that remembers nothing."""
    model.last.clear()
    return model


def test_what_is_written_comes_back(model, by_map):
    cases = [(model, SEQUENCE, count) for count in (1, 15, 16, 17, 40)]
    cases += [(by_map, MAPS.layout, count) for count in (1, 10, 26)]
    for predictor, layout, count in cases:
        file = file_of(predictor, drawn(count), layout)
        data = to_bytes(file, "predicted", predictor)
        found = from_bytes(data, fresh(predictor))
        assert torch.equal(found.tokens, file.tokens)
        assert (found.layout, found.tokenizer, found.size) == (layout, file.tokenizer, file.size)


def payload(file: TokenFile, predictor: EntropyModel, packed: int) -> int:
    """Bytes of the coded tokens, behind the generator's 4 and one each for the number of labels and of bytes."""
    return len(to_bytes(file, "predicted", predictor)) - (len(to_bytes(file, "packed")) - packed) - 6


@torch.no_grad()
def test_it_takes_as_many_bits_as_the_law_says(model):
    """Against one pass of the network: rounding to levels costs next to nothing, the checksums (8 bytes) and the end of
    the coder (at most 4) are all that comes on top."""
    for seed in range(4):
        tokens = learned(1, torch.Generator().manual_seed(seed))
        law = model.generator(tokens, LABELS.build(1).null(1)).log_softmax(-1)
        entropy = float(-law.gather(2, tokens[..., None]).sum()) / math.log(2) / 8
        file = file_of(model, tokens[0])
        length = payload(file, model, packed=25)
        assert entropy + 7 < length < 1.02 * entropy + 12.5
        assert entropy < 12  # the generator has learned something: packed, it is 25
        assert len(to_bytes(file, "auto", model)) == min(len(to_bytes(file, "predicted", model)), len(to_bytes(file)))


def test_a_code_of_even_odds_takes_its_bits():
    tokenizer = built(replace(GRID, image_size=64, quantizer=VectorConfig(codebook_size=2, codebook_dim=4)))
    layout = GridLayout(16, 16)
    generator = built(GeneratorConfig(layout=layout, depth=1, mlp_hidden=16, **SIZES | {"codebook_size": 2}))
    generator.head.logits.weight.data.zero_()
    predictor = EntropyModel(generator, tokenizer)
    file = file_of(predictor, drawn(256) % 2, layout, codebook_size=2)
    assert 32 + 3 <= payload(file, predictor, packed=32) <= 32 + 8  # 4 of the checksum, at most 4 at the end


def test_levels_are_whole_numbers_that_no_machine_rounds_otherwise():
    assert WEIGHTS[0] == LARGEST
    assert WEIGHTS[-1] == 1
    exact = LARGEST * np.exp(-np.arange(len(WEIGHTS)) / STEPS)
    assert np.abs(exact % 1 - 0.5).min() > 1e-5  # exp would have to be off by ten billion times its last digit
    logits = torch.tensor([[3.0, 1.0, -200.0, 2.97]], dtype=torch.float64)
    assert levels_of(logits).tolist() == [[0, 32, len(WEIGHTS) - 1, 0]]
    with pytest.raises(ValueError, match="no numbers"):
        levels_of(torch.tensor([[1.0, math.nan]]))


def test_one_pass_gives_the_laws_that_steps_give(model):
    tokens = learned(1, torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model.generator(tokens, LABELS.build(1).null(1))[0]
    laws, values = fresh(model).laws(()), tokens[0].numpy()
    found = [laws(values[max(i - 1, 0) : i]) for i in range(40)]
    assert np.array_equal(np.concatenate(found), WEIGHTS[levels_of(expected)])


def test_laws_that_are_remembered_are_those_of_these_tokens(model):
    one, other = drawn(40, 1), torch.cat([drawn(20, 1), drawn(20, 2)])
    expected = [to_bytes(file_of(model, tokens), "predicted", fresh(model)) for tokens in (one, other)]
    for tokens, data in ((one, expected[0]), (other, expected[1]), (one[:9], None), (other, expected[1])):
        again = to_bytes(file_of(model, tokens), "predicted", model)
        assert data is None or again == data
        assert torch.equal(from_bytes(again, model).tokens, tokens)


def test_labels_are_written_and_change_the_law(model, by_map):
    data = to_bytes(file_of(by_map, drawn(26), MAPS.layout), "predicted", by_map)
    assert torch.equal(from_bytes(data, replaced(by_map, ())).tokens, drawn(26))
    assert to_bytes(file_of(by_map, drawn(26), MAPS.layout), "predicted", replaced(by_map, (0, 0)))[24:] != data[24:]
    with pytest.raises(ValueError, match=r"labels \(4, 0\) are none"):
        model.laws((4, 0))
    with pytest.raises(ValueError, match=r"labels \(1,\) are none"):
        model.laws((1,))


def replaced(model: EntropyModel, condition: tuple[int, ...]) -> EntropyModel:
    copy = object.__new__(EntropyModel)
    copy.__dict__ = model.__dict__ | {"condition": condition, "last": {}}
    return copy


def test_a_cut_file_gives_the_tokens_up_to_the_last_checksum(model, by_map):
    assert stops_of(SEQUENCE) == (16, 32)
    assert stops_of(MAPS.layout) == (10,)
    assert stops_of(GridLayout(8, 8)) == ()
    for predictor, layout in ((model, SEQUENCE), (by_map, MAPS.layout)):
        stops = (*stops_of(layout), layout.num_tokens)
        file = file_of(predictor, drawn(layout.num_tokens), layout)
        data, counts = to_bytes(file, "predicted", predictor), []
        for end in range(len(data), 0, -1):
            try:
                found = from_bytes(data[:end], predictor)
            except ValueError:
                break
            counts.append(len(found.tokens))
            assert torch.equal(found.tokens, file.tokens[: counts[-1]])
        assert set(counts) == set(stops)
        assert counts == sorted(counts, reverse=True)
        with pytest.raises(ValueError, match="too few of the predicted tokens are left"):
            from_bytes(data[:end], predictor)


def test_another_generator_or_none_is_refused(model, tokenizer):
    data = to_bytes(file_of(model, drawn(40)), "predicted", model)
    with pytest.raises(ValueError, match=f"law of the generator {model.identity}; decode with it"):
        from_bytes(data)
    other = EntropyModel(next_token(seed=1), tokenizer)
    with pytest.raises(ValueError, match=f"law of the generator {model.identity}, but this one is {other.identity}"):
        from_bytes(data, other)
    with pytest.raises(ValueError, match="but the generator goes with"):
        from_bytes(data, EntropyModel(next_token(), built(GRID, 1)))
    with pytest.raises(ValueError, match="but the generator goes with"):
        to_bytes(file_of(model, drawn(40), tokenizer="0" * 16), "predicted", model)
    with pytest.raises(ValueError, match="needs a generator"):
        to_bytes(file_of(model, drawn(40)), "predicted")
    with pytest.raises(ValueError, match="scale the picture"):
        to_bytes(file_of(model, drawn(9), GridLayout(3, 3)), "auto", model)
    with pytest.raises(ValueError, match="one index of 32 codes a token"):
        to_bytes(file_of(model, drawn(40)[:, None], index_shape=(1,)), "predicted", model)


def test_laws_that_come_out_otherwise_are_noticed(model):
    """A machine whose arithmetic differs: some level of some token is one off."""
    file = file_of(model, drawn(40))
    data = to_bytes(file, "predicted", model)
    for place in (0, 5, 20, 39):
        for end in (len(data), len(data) - 1):
            list(map(from_bytes, [data], [fresh(model)]))
            model.last[()].answers[place][0] ^= 7
            try:
                found = from_bytes(data[:end], model).tokens
            except ValueError as error:
                assert "this machine" in str(error)
            else:
                assert end < len(data) or place == 39  # where the last law can differ without another token
                assert torch.equal(found, file.tokens[: len(found)])
                assert place >= len(found) or torch.equal(found, file.tokens)
    fresh(model)


def test_generators_that_predict_no_next_token_are_refused(tokenizer):
    masked = MaskedConfig(layout=SEQUENCE, depth=1, **SIZES)
    with pytest.raises(ValueError, match="a masked generator knows no law"):
        EntropyModel(masked.build(), tokenizer)
    texts = GeneratorConfig(
        layout=SEQUENCE, depth=1, **SIZES | {"condition": TextConditionConfig(num_slots=2, feature_dim=3)}
    )
    with pytest.raises(ValueError, match="told texts"):
        EntropyModel(texts.build(), tokenizer)
    with pytest.raises(ValueError, match="32 codes but the tokenizer has 64"):
        EntropyModel(next_token(), built(replace(GRID, quantizer=VectorConfig(codebook_size=64, codebook_dim=4))))


def test_the_given_generator_stays_as_it_is(tokenizer):
    generator = next_token()
    before = fingerprint(generator)
    assert EntropyModel(generator, tokenizer).identity == before[:8]
    assert generator.dtype == torch.float32
    assert fingerprint(generator) == before


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused_within_the_memory(model, by_map, count):
    """The container alone is mutated 100,000 times in test_tokenfile.py, where a table gives the laws."""
    short = EntropyModel(next_token(SequenceLayout(9)), built(GRID))
    pairs = [(short, SequenceLayout(9), 9), (by_map, MAPS.layout, 26)]
    files = [to_bytes(file_of(each, drawn(n), layout), "predicted", each) for each, layout, n in pairs]
    by_tokenizer, wrong = {each.tokenizer: each for each, _, _ in pairs}, 0

    def read(data: bytes) -> None:
        nonlocal wrong
        found = from_bytes(data, by_tokenizer.get(data[6:14].hex(), short))
        original = drawn(9 if found.layout == SequenceLayout(9) else 26)
        wrong += not torch.equal(found.tokens, original[: len(found.tokens)])

    tracemalloc.start()
    try:
        found = outcomes(count, read, files)
        assert tracemalloc.get_traced_memory()[1] < 128 * MIB
    finally:
        tracemalloc.stop()
    assert found["refused"] > count / 2
    assert wrong <= 2  # a checksum of 16 bits in a file that was cut
