"""What a run is asked, in forms and settings, and the spec that follows."""
