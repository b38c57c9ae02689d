"""What surrounds Lightning's loop: how long it runs, what it keeps, writes down and watches for."""
