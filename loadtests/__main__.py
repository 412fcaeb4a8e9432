"""The command `python -m loadtests`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from lewm_serve.cli.local_server import HOST, local_server
from loadtests.clients import Access
from loadtests.command import readable_errors
from loadtests.load import run_load
from loadtests.report import LoadReport
from loadtests.server_metrics import Snapshot, scrape
from loadtests.spec import LoadSpec

PROGRAM = "python -m loadtests"
DEFAULTS = LoadSpec(http="127.0.0.1:8000")

app = typer.Typer(add_completion=False)


@app.command()
def main(
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="REST of the server")
    ] = None,
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="gRPC of the server")
    ] = None,
    seconds: Annotated[float, typer.Option(help="the longest time")] = DEFAULTS.seconds,
    requests: Annotated[int, typer.Option(help="the most requests")] = DEFAULTS.requests,
    robots: Annotated[int, typer.Option(help="robots in a closed loop")] = DEFAULTS.robots,
    robot_hz: Annotated[
        float, typer.Option(help="the most requests of a robot per second")
    ] = DEFAULTS.robot_hz,
    arrivals_per_s: Annotated[
        float, typer.Option(help="plans of an open loop per second")
    ] = DEFAULTS.arrivals_per_s,
    bad_clients: Annotated[
        int, typer.Option(help="clients that send bad requests")
    ] = DEFAULTS.bad_clients,
    slow_readers: Annotated[
        int | None, typer.Option(help="clients that read slowly, over REST  [default: 1]")
    ] = None,
    leaving_clients: Annotated[
        int, typer.Option(help="clients that go away before their answer")
    ] = DEFAULTS.leaving_clients,
    deadline_ms: Annotated[
        float, typer.Option(help="the deadline of the robots' and arrivals' plans")
    ] = DEFAULTS.deadline_ms,
    seed: Annotated[int, typer.Option(help="of walks and arrivals")] = DEFAULTS.seed,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="API key of the clients, role infer and read"),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="use TLS, and trust the authorities in this PEM file"),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="certificate of the clients")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="private key of --tls-cert")
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="where report.md and report.json go")
    ] = Path("load"),
) -> None:
    """Put load on a server and report what it did. Without an address, start a server here.

    The exit status is 1 if a call failed. Calls that a busy server refuses do not fail.
    """
    with readable_errors(PROGRAM), ExitStack() as stack:
        if http is None and grpc is None:
            typer.echo("starting a server", err=True)
            server = stack.enter_context(local_server())
            http, grpc = f"{HOST}:{server.http_port}", server.target
        readers = DEFAULTS.slow_readers if http else 0
        spec = LoadSpec(
            http=http,
            grpc=grpc,
            seconds=seconds,
            requests=requests,
            robots=robots,
            robot_hz=robot_hz,
            arrivals_per_s=arrivals_per_s,
            bad_clients=bad_clients,
            slow_readers=readers if slow_readers is None else slow_readers,
            leaving_clients=leaving_clients,
            deadline_ms=deadline_ms,
            seed=seed,
            **{
                name: str(file.absolute())
                for name, file in {
                    "api_key_file": api_key_file,
                    "tls_ca": tls_ca,
                    "tls_cert": tls_cert,
                    "tls_key": tls_key,
                }.items()
                if file is not None
            },
        )
        report = run_and_report(spec)
        page, document = report.write(output)
    typer.echo(f"{report.verdict}; see {page} and {document}")
    if report.failed:
        raise typer.Exit(1)


def run_and_report(spec: LoadSpec) -> LoadReport:
    """Put a load on a server, with its metrics before and after."""
    access = Access.of(spec)

    def snapshot() -> Snapshot | None:
        if spec.http is None:
            return None
        scheme = "http" if access.tls is None else "https"
        return scrape(f"{scheme}://{spec.http}", tls=access.tls, headers=access.headers)

    before = snapshot()
    result = run_load(spec)
    return LoadReport.of(spec, result, before, snapshot())


if __name__ == "__main__":
    app(prog_name=PROGRAM)
