"""How fast a model would be: on a machine that is not here, from data sheets; see docs/how-speed-is-predicted.md."""
