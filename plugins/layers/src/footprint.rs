//! Memory of layers, reckoned from sizes: what each operation of a layer keeps, counted by hand.

/// Sizes of a stack of layers with attention.
#[derive(Debug, Clone, Copy)]
pub struct StackSizes {
    /// Layers.
    pub layers: i64,
    /// Width of a row between layers.
    pub width: i64,
    /// Width of a row's keys, and of its values.
    pub keys: i64,
    /// Values a row that are alive inside a layer, beside keys and values.
    pub inside: i64,
    /// Of these, those that only the gradients of weights need.
    pub for_weights: i64,
    /// Of a weight or an activation.
    pub bytes: i64,
    /// Whether layers keep their inputs alone for the gradient.
    pub checkpointing: bool,
    /// Whether the weights stay as they are: then their products keep no inputs for a gradient.
    pub frozen: bool,
}

impl StackSizes {
    /// Keys and values of rows in all layers.
    pub fn cache(&self, rows: i64) -> i64 {
        2 * self.keys * rows * self.layers * self.bytes
    }

    /// What is alive inside a layer for `rows` behind `past` others.
    pub fn layer(&self, rows: i64, past: i64) -> i64 {
        (self.inside * rows + 2 * self.keys * (rows + past)) * self.bytes
    }

    /// Who sees whom: as booleans, as f32, and in the type of the scores.
    pub fn mask(&self, rows: i64, past: i64) -> i64 {
        rows * (rows + past) * (1 + 4 + 4 + self.bytes)
    }

    /// What the layers keep of rows for their gradient.
    pub fn kept(&self, rows: i64, past: i64) -> i64 {
        let kept = match self.checkpointing {
            true => self.layers * self.width * rows * self.bytes + self.layer(rows, past),
            false if self.frozen => {
                self.layers * (self.layer(rows, past) - self.for_weights * rows * self.bytes)
            }
            false => self.layers * self.layer(rows, past),
        };
        // On the way back, the gradients of one layer's are alive too.
        kept + self.layer(rows, past) + self.mask(rows, past)
    }
}
