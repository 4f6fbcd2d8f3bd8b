"""The groups of `nocturne`'s commands, a module each; `flows.cli` gathers them."""
