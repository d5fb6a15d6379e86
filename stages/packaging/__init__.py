"""Parts of the stage `package`: the script that ships."""
