//! gRPC for callers who speak JSON: which services, by which descriptors, and how.

use std::sync::Arc;

pub use phalanx_transcode::schema::Problem;
pub use phalanx_transcode::{Options, Print, Table, Validation};

/// Descriptors that were compiled, with the table of bindings made of them; shared by all rules that it holds for.
#[derive(Clone, Debug)]
pub struct Transcoding {
    descriptors: Arc<[u8]>,
    services: Vec<String>,
    table: Arc<Table>,
}

impl Transcoding {
    /// `descriptors`: a `FileDescriptorSet`. `services` with their packages.
    ///
    /// # Errors
    /// All problems of the descriptors and of what they bind.
    pub fn try_new(
        descriptors: Vec<u8>,
        services: Vec<String>,
        options: Options,
    ) -> Result<Self, Vec<Problem>> {
        Ok(Self {
            table: Arc::new(Table::try_new(&descriptors, &services, options)?),
            descriptors: descriptors.into(),
            services,
        })
    }

    pub fn descriptors(&self) -> &Arc<[u8]> {
        &self.descriptors
    }

    pub fn services(&self) -> &[String] {
        &self.services
    }

    pub fn options(&self) -> &Options {
        &self.table.options
    }

    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }
}

impl PartialEq for Transcoding {
    fn eq(&self, other: &Self) -> bool {
        let is_same_set = Arc::ptr_eq(&self.descriptors, &other.descriptors)
            || self.descriptors == other.descriptors;
        is_same_set && self.services == other.services && self.options() == other.options()
    }
}

impl Eq for Transcoding {}
