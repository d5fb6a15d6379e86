"""What crosses a stage border: frozen, validated records. Pydantic and the standard library only."""
