"""The sections made of words: each is HTML, or empty if there is nothing to show."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from html import escape

from imgtok.sample.report.formatting import flat, section, two_columns
from imgtok.sample.report.run import Run, codebook, codebook_size


def headline(run: Run) -> str:
    total = run.number("total_seconds")
    if total is None:
        return "Pictures from tokens"
    return f"Pictures from tokens, learned in {total / 60:.{0 if total >= 120 else 1}f} minutes"


def header(run: Run) -> str:
    cards = "\n".join(
        f'<div class="card"><b>{value}<small>{unit}</small></b><span>{caption}</span></div>'
        for value, unit, caption in headline_numbers(run)
    )
    return f"""<header>
<p class="eyebrow">imgtok quickstart</p>
<h1>{escape(headline(run))}</h1>
<p class="lead">{summary(run)}</p>
<div class="cards">
{cards}
</div>
</header>"""


def summary(run: Run) -> str:
    tokens = f"{run.tokenizer.layout.num_tokens} tokens" if run.tokenizer else "tokens"
    return (
        f"A tokenizer has learned to turn every picture into {tokens} and back, and a generator has learned to write "
        f"such tokens by itself, one after another{where(run)}."
    )


def where(run: Run) -> str:
    """The device in words; empty if not known."""
    device, threads = str(run.metrics.get("device", "")), run.number("threads")
    if not device:
        return ""
    name = {"cpu": "a CPU", "cuda": "a GPU", "mps": "an Apple GPU"}.get(device.partition(":")[0], escape(device))
    return f", all on {name}" + (f" with {threads:g} threads" if device == "cpu" and threads else "")


def headline_numbers(run: Run) -> Iterator[tuple[str, str, str]]:
    """Value, unit and meaning, of what was measured."""
    if (value := run.number("tokenizer.val_psnr")) is not None:
        yield f"{value:.1f}", "dB", "PSNR of pictures rebuilt from tokens, never seen in training"
    if (value := run.number("tokenizer.code_usage")) is not None:
        yield f"{100 * value:.3g}", "%", f"of the {codebook(run)}codes are in use"
    if (value := run.number("generator.val_loss")) is not None:
        size = codebook_size(run)
        guess = f"; a blind guess costs {math.log(size):.2f}" if size else ""
        yield f"{value:.2f}", "nats", f"per token, on pictures never seen{guess}"
    if (value := run.number("sample.seconds_per_image")) is not None:
        yield f"{value:.2g}", "s", "to draw one picture"
    if (value := run.number("total_seconds")) is not None:
        yield f"{value / 60:.1f}", "min", "from the first step to this page"


def explanation(run: Run) -> str:
    steps = (("Tokenizer", about_tokenizer(run)), ("Generator", about_generator(run)), ("Samples", ABOUT_SAMPLES))
    columns = "\n".join(
        f"<div><h3><i>{number}</i>{title}</h3><p>{text}</p></div>" for number, (title, text) in enumerate(steps, 1)
    )
    return section("What you see", "", f'<div class="steps">\n{columns}\n</div>')


def about_tokenizer(run: Run) -> str:
    config, value = run.tokenizer, run.number("tokenizer.val_psnr")
    text = "The tokenizer cuts a picture into cells and describes each by one code out of a list it made up itself."
    if config:
        size, layout, codes = config.image_size, config.layout, config.quantizer.codebook_size
        cells = " × ".join(map(str, layout.latent_shape))
        shrinkage = 24 * size * size / (layout.num_tokens * math.log2(codes))
        cells = " × ".join(map(str, layout.latent_shape))
        text = (
            f"The tokenizer cuts a picture of {size} × {size} pixels into {cells} cells and "
            f"describes each by one of {codes} codes it made up itself: {shrinkage:.0f} times less data."
        )
    text += " Its second half paints the picture again from these tokens alone."
    if value is not None:
        text += f" A PSNR of {value:.1f} dB is a typical error of {100 * 10 ** (-value / 20):.0f} % of full brightness;"
        text += " 6 dB more would halve it."
    return text


def about_generator(run: Run) -> str:
    loss = run.number("generator.val_loss")
    text = (
        "The generator is a transformer that reads the tokens so far and bets on the next one. Its loss, in nats per "
        "token, is how surprised it is by the true one."
    )
    if loss is not None:
        size = codebook_size(run)
        text += f" {loss:.2f} nats is as if it hesitated between {math.exp(min(loss, 99)):.0f} codes"
        text += f" instead of {size}." if size else "."
    return text


def settings(run: Run) -> str:
    blocks = "\n".join(
        f"<details><summary>{name.capitalize()} <span>{name}/train.json</span></summary>\n"
        f"{two_columns(flat(values), 'settings')}\n</details>"
        for name, values in run.settings.items()
        if values
    )
    text = "Everything the two trainings were told, by name."
    return section("Exact settings", text, blocks) if blocks else ""


def commands(run: Run) -> str:
    generator, tokenizer = (shlex.quote(str(run.folder.resolve() / name)) for name in ("generator", "tokenizer"))
    labels = [str(row.get("label", "")) for row in run.samples]
    label = "Food & Drink" if "Food & Drink" in labels else next(iter(labels), "")
    wanted = f" --label category={shlex.quote(label)}" if label else ""
    examples = (
        (
            "Draw more pictures; another seed gives others",
            f"imgtok generate --model {generator}{wanted} --num 16 --seed 1 --out samples",
        ),
        (
            "Send a photo of yours through the tokenizer and back",
            f"imgtok reconstruct photo.jpg --model {tokenizer} --out out",
        ),
        (
            "Train both on a folder of your own pictures; its sub-folders become the categories",
            "imgtok train tokenizer quickstart --data YOUR_FOLDER --out runs/tok\n"
            "imgtok train generator quickstart --tokenizer runs/tok --data YOUR_FOLDER --out runs/gen",
        ),
    )
    blocks = "\n".join(f"<p>{escape(text)}</p>\n<pre><code>{escape(line)}</code></pre>" for text, line in examples)
    return section("Try next", "", f'<div class="commands">\n{blocks}\n</div>')


def footer(run: Run) -> str:
    data = run.settings["tokenizer"].get("data")
    source = data.get("source", "emoji64") if isinstance(data, dict) else "emoji64"
    return f"<footer><p>{ATTRIBUTION}</p></footer>" if source == "emoji64" else ""


ABOUT_SAMPLES = (
    "A sample starts from labels alone (category, subcategory, style): the generator draws token after token, "
    "the tokenizer paints the result. Models this small, trained this briefly, get colours, shapes and styles, "
    "and lose fine detail; "
    "more steps and larger models sharpen it."
)

ATTRIBUTION = (
    "The pictures learned from are emoji: "
    '<a href="https://github.com/googlefonts/noto-emoji">Noto Color Emoji</a> (Google, Apache-2.0), '
    '<a href="https://github.com/jdecked/twemoji">Twemoji</a> (Twitter and contributors, CC-BY 4.0) and '
    '<a href="https://github.com/microsoft/fluentui-emoji">Fluent Emoji</a> (Microsoft, MIT), scaled to 64 × 64 pixels '
    "on white; see the file NOTICE of imgtok."
)
