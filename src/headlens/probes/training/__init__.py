"""How are probes trained? Many together, with one read of the rows for all of them."""
