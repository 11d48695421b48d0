"""The papers' statements, each a claim that is measured: `icrl-gym reproduce`. The core never imports this."""
