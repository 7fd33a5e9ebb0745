"""The commands `thresher sae ...`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from thresher.cli_common import guard, print_pairs, print_table

app = typer.Typer(no_args_is_help=True, help="Look at sparse autoencoders; exchange them with other libraries and the hub.")


class Encoder(StrEnum):
    """How a dictionary whose file does not say it finds its codes."""

    RELU = "relu"
    TOPK = "topk"
    ABS_TOPK = "abs_topk"
    JUMPRELU = "jumprelu"


class RowShape(StrEnum):
    """What was done to rows before another library saw them."""

    UNIT = "unit"
    LAYER = "layer"


class Library(StrEnum):
    """What a dictionary can be exported to."""

    SAELENS = "saelens"
    DICTIONARY_LEARNING = "dictionary-learning"
    SPARSIFY = "sparsify"
    OVERCOMPLETE = "overcomplete"
    SAEBENCH = "saebench"


Checkpoint = Annotated[Path, typer.Argument(metavar="SAE", help="Folder of a checkpoint.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")]
Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit.")]
Lossy = Annotated[bool, typer.Option("--lossy", help="Go on although something is lost, and record what.")]
HookPoint = Annotated[str | None, typer.Option(help="Hook point; needed where each has its own normalisation.")]


@app.command()
@guard
def info(path: Checkpoint) -> None:
    """What a checkpoint is, what it was trained on and how well it does on held-out items."""
    from thresher.train.checkpoint import describe_sae

    print_pairs(describe_sae(path))


@app.command()
@guard
def export(
    path: Checkpoint,
    out: Out,
    to: Annotated[Library, typer.Option(help="The library that is to read it.")],
    hook_point: HookPoint = None,
    model_name: Annotated[str | None, typer.Option(help="What that library calls the model.")] = None,
    hook_name: Annotated[str | None, typer.Option(help="And the hook point: blocks.3.hook_resid_post.")] = None,
    lossy: Lossy = False,
) -> None:
    """Write a dictionary for another library, its normalisation folded in: raw activations in, the same codes out."""
    from thresher.train.checkpoint import load_sae
    from thresher.train.exchange import export_sae

    names = {"hook_point": hook_point, "model_name": model_name, "hook_name": hook_name}
    written = export_sae(load_sae(path), out, to.value, **names, lossy=lossy)
    _say(written.folder, written.lost)


@app.command("import")
@guard
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Folder or file that another library, or an export, wrote; or owner/name[/folder]."
        ),
    ],
    out: Out,
    hook_point: Annotated[
        list[str] | None, typer.Option(help="What to call the place of its activations; again for another one.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="The store that it is to be analyzed on.")] = None,
    rows: Annotated[
        RowShape | None, typer.Option(help="It was trained on rows at unit norm; layer: less their own means before that.")
    ] = None,
    kind: Annotated[Encoder | None, typer.Option(help="How it encodes, where a single file does not say it.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Atoms per row, where a single file does not say it.")] = None,
    bias: Annotated[
        bool | None,
        typer.Option("--subtract-bias/--keep-bias", help="Whether the decoder's bias is subtracted from a row first."),
    ] = None,
    revision: Revision = None,
    lossy: Lossy = False,
) -> None:
    """Make a checkpoint from another library's dictionary. Code in pickles is never run."""
    from thresher.train.exchange import Stated, import_sae
    from thresher.train.exchange.hub import find_released

    stated = Stated(None if kind is None else kind.value, k, bias)
    place, shape = find_released(source, revision=revision), None if rows is None else rows.value
    written = import_sae(place, out, hook_point=hook_point, store=store, rows=shape, stated=stated, lossy=lossy)
    _say(written.folder, written.lost)


@app.command()
@guard
def evaluate(
    path: Checkpoint,
    store: Annotated[str | None, typer.Option(help="The store; that of its training when not given.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="What the store calls the place, where it differs.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; assessment.json in the checkpoint when not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Measure a checkpoint, ours or imported, on a store's held-out rows: R2, L0 and dead atoms per hook point.

    Of a crosscoder also whose its features are: counts here, one row per feature in features.csv and features.parquet.
    """
    from thresher.train.assess import assess

    found = assess(path, store=store, hook_point=hook_point, out=out, device=device)
    rows = [{"hook point": name, **each._asdict()} for name, each in found.by_hook_point.items()]
    print_table([{key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows])
    if found.sides:
        reaching = {name: f"{value:.4g}" for name, value in found.sides["l0"].items()}
        print_table(
            [
                {"features of": name, "number": n, "active per row": reaching.get(name, "")}
                for name, n in found.sides["features"].items()
            ]
        )
    if not found.is_known_split:
        typer.echo("it was not trained here on this store: these rows may be among those it was fitted to", err=True)
    typer.echo(found.path)


@app.command()
@guard
def push(
    path: Checkpoint, repo: Repo, private: Annotated[bool, typer.Option("--private", help="Visible to its owner only.")] = False
) -> None:
    """Upload a checkpoint to the Hugging Face hub, with a card that carries its evaluation."""
    from thresher.train.exchange.hub import push_sae

    typer.echo(push_sae(path, repo, private=private))


@app.command()
@guard
def pull(repo: Repo, out: Out, revision: Revision = None) -> None:
    """Copy a checkpoint of the Hugging Face hub into a folder."""
    from thresher.train.exchange.hub import pull_sae

    typer.echo(pull_sae(repo, out, revision=revision))


@app.command()
@guard
def card(path: Checkpoint, repo: Repo) -> None:
    """Print the model card that `push` would upload."""
    from thresher.train.checkpoint import read_description
    from thresher.train.exchange.card import write_card

    typer.echo(write_card(read_description(path), repo))


def _say(folder: Path, lost: Sequence[str]) -> None:
    typer.echo(folder)
    for each in lost:
        typer.echo(f"lost: {each}", err=True)
