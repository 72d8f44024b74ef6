"""Methods and random fields that know no family."""
