"""The commands `thresher store ...`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from thresher.cli_common import guard, print_pairs, print_table

DAMAGED = 1
"""Exit code of `store verify` when it finds damage, and of `store repair` when a harvest has to make something again."""

app = typer.Typer(no_args_is_help=True, help="Look at activation stores; check, mend, join and convert them.")

StorePlace = Annotated[str, typer.Argument(metavar="STORE", help="Folder or address (s3://bucket/prefix) of a store.")]
HookPoints = Annotated[list[str] | None, typer.Option("--hook-point", help="Only this hook point; can be given several times.")]


class Form(StrEnum):
    """What a store can be exported to."""

    HDF5 = "hdf5"
    HDF5_VIEW = "hdf5-view"
    SAFETENSORS = "safetensors"
    NPY = "npy"
    PARQUET = "parquet"


class Profile(StrEnum):
    """How the chunks of a store are encoded."""

    RAW = "raw"
    COMPACT = "compact"
    ARCHIVE = "archive"


class Modality(StrEnum):
    """What the items of imported activations are."""

    IMAGE = "image"
    TEXT = "text"


class StoredType(StrEnum):
    """What bfloat16 arrays are called."""

    BFLOAT16 = "bfloat16"
    UINT16 = "uint16"


@app.command("info")
@guard
def store_info(path: StorePlace) -> None:
    """What a store holds: model, source, hook points, rows, sizes."""
    from thresher.data.store import describe_store

    print_pairs(describe_store(path))


@app.command("verify")
@guard
def store_verify(
    path: StorePlace,
    sizes: Annotated[bool, typer.Option("--sizes", help="Compare file sizes and indices only; do not read the data.")] = False,
) -> None:
    """Check a store against its checksums; exit code 1 when something is damaged."""
    from thresher.data.store import verify_store

    findings = verify_store(path, level="sizes" if sizes else "checksums")
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise typer.Exit(DAMAGED)
    typer.echo(f"{path}: sound")


@app.command("ls")
@guard
def store_ls(folder: Annotated[str, typer.Argument(help="Folder to look through.")] = ".") -> None:
    """The stores below a folder."""
    from thresher.data.store import list_stores

    rows = list_stores(folder)
    if not rows:
        typer.echo(f"{folder}: no activation store here; `thresher harvest` makes one")
        return
    print_table(rows)


@app.command("repair")
@guard
def store_repair(path: StorePlace) -> None:
    """Drop what is damaged or not committed, rebuild what follows from the rest, and say what a harvest will redo."""
    from thresher.data.store import repair_store

    repair = repair_store(path)
    for line in [*repair.findings, *repair.actions]:
        typer.echo(line)
    if not repair.is_complete:
        raise typer.Exit(DAMAGED)
    typer.echo(f"{path}: sound")


@app.command("unlock")
@guard
def store_unlock(path: StorePlace) -> None:
    """Let the next harvest into a store in a bucket, when the one that was writing it is gone for good."""
    from thresher.data.store import unlock_store

    holder = unlock_store(path)
    typer.echo(f"{path}: taken from {holder}" if holder else f"{path}: nobody holds it")


@app.command("head")
@guard
def store_head(
    path: StorePlace,
    hook_points: HookPoints = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Rows of each hook point.")] = 5,
    start: Annotated[int, typer.Option(min=0, help="First row.")] = 0,
) -> None:
    """A few rows of each hook point with the items they belong to."""
    from thresher.data.store import open_store, read_head

    store = open_store(path, incomplete="prefix")
    for name in hook_points or store.hook_points:
        typer.echo(f"{name}: {store.rows(name)} rows")
        print_table(read_head(store, name, start, n))


@app.command("merge")
@guard
def store_merge(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or address of the new store.")],
    parts: Annotated[list[str], typer.Argument(metavar="STORE...", help="Complete stores of the same hook points.")],
    prefix: Annotated[
        bool, typer.Option("--prefix-keys", help="Put the number of its part before the key of each item.")
    ] = False,
    profile: Annotated[
        Profile | None, typer.Option(help="How to store rows: as they are, with lz4, with zstd; as the parts do, if not given.")
    ] = None,
) -> None:
    """Write several stores of the same hook points into one. Run again to resume."""
    from thresher.data.store import merge_stores

    keys, chosen = "prefix" if prefix else "keep", profile.value if profile else None
    typer.echo(merge_stores(parts, out, keys=keys, profile=chosen))


@app.command("export")
@guard
def store_export(
    path: StorePlace,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New file (hdf5, hdf5-view) or folder (all others).")],
    form: Annotated[Form, typer.Option("--to", help="What to write.")],
    hook_points: HookPoints = None,
) -> None:
    """Write a store as HDF5 (a copy, or a view that reads its files), safetensors, npy or Parquet (for `datasets`)."""
    from thresher.data.store import export_store

    typer.echo(export_store(path, out, form.value, hook_points=hook_points))


@app.command("import")
@guard
def store_import(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="An array (npy, npz, h5, safetensors, pt), or cached activations of SAELens."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or address of the new store.")],
    modality: Annotated[Modality | None, typer.Option(help="What the items are; not needed with --texts.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Name for an array that has none (npy), or the one to take.")] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Embeddings of texts, in a file like SOURCE, which are those of their images then.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV with columns image and text: rows that belong together.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="The texts themselves: a line each, or a CSV with columns caption (and image).")
    ] = None,
    profile: Annotated[Profile, typer.Option(help="How to store rows: as they are, with lz4, with zstd.")] = Profile.RAW,
) -> None:
    """Make a store of activations that another tool has kept. Run again to resume."""
    from thresher.data.store import import_pairs, import_store
    from thresher.errors import ConfigError

    if texts is not None:
        if modality is not None or hook_point is not None:
            raise ConfigError("--texts: SOURCE are images then, and the hook points vision.embed and text.embed; give no other")
        typer.echo(import_pairs(source, texts, out, pairs=pairs, captions=captions, profile=profile.value))
        return
    if modality is None or pairs is not None or captions is not None:
        raise ConfigError("give --modality image or text; or --texts, with which --pairs and --captions go")
    typer.echo(import_store(source, out, modality=modality.value, hook_point=hook_point, profile=profile.value))


@app.command("retype")
@guard
def store_retype(path: StorePlace, to: Annotated[StoredType, typer.Option(help="The name of the type.")]) -> None:
    """Call bfloat16 arrays uint16 for readers that do not know bfloat16, or bfloat16 again. Touches metadata only."""
    from thresher.data.store import retype_store

    typer.echo(f"{to.value}: {', '.join(retype_store(path, to.value)) or 'nothing to change'}")
