"""Command `fairway schema`: what a run file may hold, for editors."""

from flows.cli.base import Debug, app, clear_errors, print_json


@app.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of run files, by which an editor completes and checks them."""
    with clear_errors(debug):
        from flows.inputs.run_file_schema import run_file_schema

        print_json(run_file_schema())
