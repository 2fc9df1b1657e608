"""The commands `stinfer bank …`."""

from __future__ import annotations

from pathlib import Path

import click

from stinfer.cli_tools import FILE, shows_errors


@click.group(name="bank", epilog="Example: stinfer bank verify her2st.h5")
def bank_group() -> None:
    """Look into reference banks, and sign them."""


@bank_group.command(epilog="Example: stinfer bank info her2st.h5")
@click.argument("bank", type=FILE)
@click.option("--genes", is_flag=True, help="List the genes instead, one a line.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON instead, for other programs.")
@shows_errors
def info(bank: Path, *, genes: bool, as_json: bool) -> None:
    """Print what BANK holds: references, genes, scale, backbone, settings and hashes."""
    if genes and as_json:
        msg = "--genes and --json exclude each other."
        raise click.UsageError(msg)
    import json

    from stinfer.bank import Bank
    from stinfer.compare_banks import summarize_bank
    from stinfer.inspect_bank import describe_bank

    opened = Bank.open(bank)
    if as_json:
        click.echo(json.dumps(summarize_bank(opened), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        click.echo("\n".join(opened.genes) if genes else describe_bank(opened))


@bank_group.command(epilog="Example: stinfer bank diff old.h5 her2st.h5")
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@shows_errors
def diff(first: Path, second: Path) -> None:
    """Print how banks A and B differ: settings, sections, genes, and part by part."""
    from stinfer.bank import Bank
    from stinfer.compare_banks import diff_banks

    for line in diff_banks(Bank.open(first), Bank.open(second)):
        click.echo(line)


@bank_group.command(epilog="Example: stinfer bank verify her2st.h5 --key lab.pub")
@click.argument("bank", type=FILE)
@click.option(
    "--key",
    type=FILE,
    metavar="FILE|DIR",
    help="Public key (.pub), or folder of them, that must have signed it. [default: those of the environment "
    "variable STINFER_BANK_KEYS, where it is set]",
)
@shows_errors
def verify(bank: Path, key: Path | None) -> None:
    """Check BANK: its signature, hashes, shapes, finiteness, its model, and its index against its embeddings.

    The signature is checked where a key is given, or the site's policy is set.
    """
    from stinfer.inspect_bank import verify_bank

    for line in verify_bank(bank, key):
        click.echo(f"ok  {line}")


@bank_group.command(epilog="Example: stinfer bank keygen lab")
@click.argument("name", type=FILE)
@click.option("--overwrite", is_flag=True, help="Replace keys that exist.")
@shows_errors
def keygen(name: Path, *, overwrite: bool) -> None:
    """Make a pair of keys: NAME.key, which signs banks, and NAME.pub, which says who signed them.

    Keep NAME.key where only those who release banks can read it; NAME.pub is for every site. They are Ed25519
    keys as minisign has them, so that either program can be used.
    """
    from stinfer.signing import make_keys

    private, public, key = make_keys(name, overwrite=overwrite)
    click.echo(f"{private}: the private key; keep it secret, and keep a copy")
    click.echo(f"{public}: the public key, {key.name}")


@bank_group.command(epilog="Example: stinfer bank sign her2st.h5 --key lab.key")
@click.argument("bank", type=FILE)
@click.option("--key", type=FILE, required=True, help="Private key (.key) of stinfer bank keygen.")
@click.option("--overwrite", is_flag=True, help="Replace a signature that exists.")
@shows_errors
def sign(bank: Path, key: Path, *, overwrite: bool) -> None:
    """Check BANK and sign it: write BANK.minisig, which goes wherever the bank goes.

    The bank itself is not changed. A site accepts signed banks alone with stinfer-run --bank-key NAME.pub, or
    with the environment variable STINFER_BANK_KEYS, a folder of public keys.
    """
    from stinfer.bank import Bank
    from stinfer.signing import sign_bank

    Bank.open(bank)
    click.echo(f"{sign_bank(bank, key, overwrite=overwrite)}: the signature; keep it beside the bank")
