"""What is looked at and moved in a notebook: widgets and figures that read public objects and write through their methods."""
