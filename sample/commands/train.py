"""imgtok train tokenizer | generator | posttrain: a recipe, changed by the command line, trained into a folder."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

import tyro

from imgtok import config as configs
from imgtok import hub
from imgtok.generators.condition import Label
from imgtok.sample.commands.common import Device, Flag, check_place, command_line, contents, set_threads
from imgtok.sample.evaluate import is_first
from imgtok.train.generator_config import GeneratorTraining
from imgtok.train.loop import Outcome, Stopped
from imgtok.train.posttrain import PostTraining
from imgtok.train.posttrain_run import post_train
from imgtok.train.recipes import GENERATORS, POST_TRAININGS, TOKENIZERS, AnyTokenizerTraining
from imgtok.train.run import train_generator, train_tokenizer

RUN_FILE = "train.json"
SUBJECTS = {"posttrain": "decoder on what its generator draws"}  # of what a run trains, where it is no name of one
NO_DATA = "."  # the source of recipes whose data cannot come with the package


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every training."""

    out: Path
    """Folder of the run: the model, train.json, log.jsonl, previews and checkpoints."""
    data: str | None = None
    """Images of any size: a folder, classes as sub-folders, or emoji64 or photos. Short for --data.source."""
    config: Path | None = None
    """Repeat an earlier run, in place of RECIPE: its folder or its train.json."""
    resume: Flag = False
    """Go on with the run in --out, from its last checkpoint."""
    device: Device = "auto"
    """auto: what accelerate finds."""
    threads: int | None = None
    """CPU threads; None: torch's choice."""


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions(Options):
    tokenizer: str
    """Whose tokens to learn: a folder that training or `imgtok convert` wrote, or a preset."""


@dataclass(frozen=True, kw_only=True)
class PairOptions(Options):
    tokenizer: str
    """Whose decoder to train: a folder that training or `imgtok convert` wrote, or a preset."""
    generator: str
    """A generator of its tokens, a folder or a preset; it stays as it is."""


AnyOptions = TypeVar("AnyOptions", bound=Options)
Training = TypeVar("Training", AnyTokenizerTraining, GeneratorTraining, PostTraining)


@dataclass(frozen=True, kw_only=True)
class Job(Generic[AnyOptions, Training]):
    """All that the command line says; the names of its two parts do not show."""

    options: Annotated[AnyOptions, tyro.conf.arg(name="")]
    training: Annotated[Training, tyro.conf.arg(name="")]


def tokenizer(words: Sequence[str]) -> None:
    """Trains a tokenizer: images to tokens and back."""
    job, kinds = Job[Options, AnyTokenizerTraining], get_args(AnyTokenizerTraining)
    options, training = parse("tokenizer", words, job, Options(out=tyro.MISSING), kinds, TOKENIZERS)
    prepare(options)
    with stopping():
        outcome = train_tokenizer(training, options.out, resume=options.resume, device=options.device)
    look = ["reconstruct", "photos", "--model", options.out, "--out", "reconstructions"]
    go_on = ["train", "generator", words[0] if words[0] in GENERATORS else "RECIPE", "--tokenizer", options.out]
    go_on += ["--data", training.data.source, "--out", options.out.with_name("generator")]
    report(options.out, outcome, [look, go_on])


def generator(words: Sequence[str]) -> None:
    """Trains a generator on the tokens of images."""
    required = GeneratorOptions(out=tyro.MISSING, tokenizer=tyro.MISSING)
    options, training = parse(
        "generator", words, Job[GeneratorOptions, GeneratorTraining], required, GeneratorTraining, GENERATORS
    )
    prepare(options)
    if is_first():
        check_fit(training, options)
    with stopping():
        outcome = train_generator(
            training, options.tokenizer, options.out, resume=options.resume, device=options.device
        )
    report(options.out, outcome, [["generate", "--model", options.out, "--out", "samples"]])


def posttrain(words: Sequence[str]) -> None:
    """Trains the decoder of a tokenizer on tokens that a generator has drawn in part."""
    required = PairOptions(out=tyro.MISSING, tokenizer=tyro.MISSING, generator=tyro.MISSING)
    options, training = parse(
        "posttrain", words, Job[PairOptions, PostTraining], required, PostTraining, POST_TRAININGS
    )
    prepare(options)
    with stopping():
        outcome = post_train(
            training,
            options.tokenizer,
            options.generator,
            options.out,
            resume=options.resume,
            device=options.device,
        )
    look = ["generate", "--model", options.generator, "--tokenizer", options.out, "--out", "samples"]
    report(options.out, outcome, [look])


def parse(
    kind: str,
    words: Sequence[str],
    job: Any,
    required: AnyOptions,
    training: type[Training] | tuple[type[Training], ...],
    recipes: Mapping[str, Callable[[], Training]],
) -> tuple[AnyOptions, Training]:
    """Options and training configuration: that of the recipe or of --config, with the values that the words change."""
    named = bool(words) and not words[0].startswith("-")
    name, rest = (words[0], words[1:]) if named else ("", words)
    earlier = value_after("--config", rest)
    if not named and not earlier:
        if {"-h", "--help"} & set(rest):
            tyro.cli(
                type(required), prog=f"imgtok train {kind} RECIPE", description=overview(kind, recipes), args=["-h"]
            )
        raise ValueError(f"say which recipe first, {' or '.join(recipes)}; or --config with an earlier run")
    if named and earlier:
        raise ValueError(f"the recipe {name!r} and --config {earlier} exclude each other; give one")
    base = recipe(kind, name, recipes) if named else earlier_run(Path(earlier), training)
    subject, origin = SUBJECTS.get(kind, kind), "recipe" if named else "earlier run"
    parsed = tyro.cli(
        job,
        prog=f"imgtok train {kind} {name}".rstrip(),
        description=f"Train a {subject}. Every value of the {origin} can be changed.",
        default=Job(options=required, training=base),
        args=list(rest),
        config=(tyro.conf.AvoidSubcommands,),
    )
    return parsed.options, with_data(parsed.training, base, parsed.options.data)


def value_after(option: str, words: Sequence[str]) -> str:
    """What follows `option` among the words, as `--option value` or `--option=value`; empty if nothing does."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == option:
            return "" if following.startswith("-") else following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""


def recipe(kind: str, name: str, recipes: Mapping[str, Callable[[], Training]]) -> Training:
    if name not in recipes:
        close = difflib.get_close_matches(name, recipes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(recipes)}"
        raise ValueError(f"there is no {kind} recipe {name!r}; {hint}")
    return recipes[name]()


def earlier_run(path: Path, training: type[Training] | tuple[type[Training], ...]) -> Training:
    path = path / RUN_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file; give the folder of an earlier run or its {RUN_FILE}")
    return configs.load(training, path)


def with_data(training: Training, base: Training, data: str | None) -> Training:
    """The configuration with --data as its source."""
    source = training.data.source
    if data is None:
        if source == NO_DATA:
            raise ValueError("this recipe has no images of its own; add --data with a folder or an embedded set")
        return training
    if source not in (base.data.source, data):
        raise ValueError(f"--data {data} and --data.source {source} contradict each other; give one")
    return replace(training, data=replace(training.data, source=data))


def overview(kind: str, recipes: Mapping[str, Callable[[], Training]]) -> str:
    """What --help says where no recipe is named."""
    width = max(map(len, recipes))
    rows: list[str] = []
    for name, make in recipes.items():
        config = make()
        data = "needs --data" if config.data.source == NO_DATA else config.data.source
        rows.append(f"  {name:<{width}}  {config.loop.steps:,} steps of {config.loop.batch_size}, {data}")
    more = (
        f"imgtok train {kind} RECIPE --help shows the values of a recipe; each can be changed, as --optimizer.lr 3e-4."
    )
    return "\n".join([f"Train a {SUBJECTS.get(kind, kind)} by a recipe.", "", "Recipes:", *rows, "", more])


def prepare(options: Options) -> None:
    """Checks and settings before a run. Of several processes only the first speaks, and looks at --out."""
    set_threads(options.threads)
    if not is_first():
        logging.getLogger("imgtok").setLevel(logging.ERROR)
        return
    check_place(options.out)
    if contents(options.out) and not (options.out / RUN_FILE).is_file():
        raise ValueError(f"--out {options.out} is not empty and holds no run; choose a new folder")


def check_fit(training: GeneratorTraining, options: GeneratorOptions) -> None:
    """ValueError if there is no such tokenizer, if it is not the one of a resumed run, or if sizes do not fit."""
    chosen, own = hub.load(options.tokenizer), options.out / "tokenizer"
    if options.resume and (own / hub.CONFIG_FILE).is_file():
        if hub.fingerprint(hub.load(own)) != hub.fingerprint(chosen):
            raise ValueError(f"--tokenizer {options.tokenizer} is not the one that {options.out} was started with")
    hub.build_empty(training.model.config(chosen.config, (Label(size=1),)))


@contextmanager
def stopping() -> Iterator[None]:
    """A stopped run ends the command as Ctrl-C does, but with its own message."""
    try:
        yield
    except Stopped as stopped:
        if not is_first():
            raise SystemExit(130) from None
        raise KeyboardInterrupt(str(stopped)) from stopped


def report(out: Path, outcome: Outcome, following: Sequence[Sequence[object]]) -> None:
    """What was written, and commands to try next."""
    if not is_first():
        return
    numbers = "".join(f", {name} {value:.4g}" for name, value in outcome.metrics.items())
    print(f"{out}: trained in {outcome.seconds:.0f} s, {outcome.rows_per_second:.3g} images/s{numbers}")
    for start, words in zip(["next:", *["  or:"] * len(following)], following, strict=False):
        print(f"{start} {command_line(['imgtok', *words])}")
