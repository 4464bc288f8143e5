"""Frequency bands from the command line: from a folder of pictures to previews and samples."""

import torch

import imgtok
from imgtok.data import read_picture
from imgtok.generators.presets import PRESETS
from imgtok.quantizers.views import BandsConfig

TOKENIZER = (
    *("--tokenizer.image-size", 16, "--tokenizer.quantizer.stage.codebook-size", 32),
    *("--tokenizer.backbone.encoder-widths", 8, "--tokenizer.backbone.encoder-blocks", 1),
    *("--tokenizer.backbone.decoder-widths", 8, 8, "--tokenizer.backbone.decoder-blocks", 1, 1),
    *("--tokenizer.backbone.latent-channels", 8, "--tokenizer.backbone.norm-groups", 4),
    *("--loop.steps", 8, "--loop.batch-size", 4, "--device", "cpu"),
)
GENERATOR = (
    *("--model.width", 16, "--model.depth", 1, "--model.num-heads", 2),
    *("--loop.steps", 2, "--loop.batch-size", 4, "--device", "cpu"),
)


def test_from_a_folder_of_pictures_to_samples_band_by_band(run, pictures, tmp_path):
    tokenizer, generator = tmp_path / "tokenizer", tmp_path / "generator"
    words = ("quickstart-nfig", "--data", pictures)
    rule = ("--tokenizer.quantizer.view.rule", "share")
    result = run("train", "tokenizer", *words, "--out", tokenizer, *TOKENIZER, *rule)
    assert result.status == 0, result.err
    assert f"or: imgtok train generator quickstart-nfig --tokenizer {tokenizer}" in result.out
    view = imgtok.load_config(tokenizer).quantizer.view
    assert isinstance(view, BandsConfig) and view.rule == "share"
    assert run("train", "generator", *words, "--tokenizer", tokenizer, "--out", generator, *GENERATOR).status == 0

    reconstruct = ("reconstruct", pictures / "cats", "--model", tokenizer)
    for bands in (1, 5):
        assert run(*reconstruct, "--scales", bands, "--out", tmp_path / str(bands)).status == 0
    assert run(*reconstruct, "--out", tmp_path / "all").status == 0
    one, five, every = (read_picture(tmp_path / name / "0.png") for name in ("1", "5", "all"))
    assert torch.equal(five, every) and not torch.equal(one, every)

    options = PRESETS["nfig-d16-256"].note.rpartition("cfg: ")[2].split()
    assert options[0] == "--guidance"
    samples = ("generate", "--model", generator, "--num", 3, *options)
    for name, batch_size in (("alone", 1), ("together", 3)):
        result = run(*samples, "--batch-size", batch_size, "--out", tmp_path / name)
        assert (result.status, result.err) == (0, "")
        assert "5.0 network calls an image" in result.out
    assert torch.equal(
        read_picture(tmp_path / "alone" / "00002.png"), read_picture(tmp_path / "together" / "00002.png")
    )
