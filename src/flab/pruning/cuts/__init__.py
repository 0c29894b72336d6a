"""The three cuts. In each: ``score_*`` reads the model, ``choose_*`` works on numbers, ``cut_*`` changes shapes."""
