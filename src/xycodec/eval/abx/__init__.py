"""Phone ABX: how well a codec's frames tell phones apart."""
