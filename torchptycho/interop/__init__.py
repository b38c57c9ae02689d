"""Meeting other programs: their layouts, signs and weights."""
