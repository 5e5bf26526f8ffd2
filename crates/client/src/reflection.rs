//! Asking a gRPC server for its descriptors (server reflection, v1 and v1alpha, whose messages are the same). Files go on as
//! the bytes that the server has: decoding would lose the options that are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use phalanx_proto::grpc::reflection::v1 as wire;
use phalanx_proto::grpc::reflection::v1::server_reflection_request::MessageRequest;
use phalanx_proto::grpc::reflection::v1::server_reflection_response::MessageResponse;
use prost::Message;
use prost_types::FileDescriptorProto;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// In the order in which they are tried.
const METHODS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// What every server has, and nobody calls with JSON.
const OF_GRPC: [&str; 3] = ["grpc.reflection.", "grpc.health.", "grpc.channelz."];
/// Of a server.
const FILES_MAX: usize = 1_000;
const SERVICES_MAX: usize = 1_000;
/// Of the connection, and of each answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the whole.
const ALL_MAX: Duration = Duration::from_secs(30);
/// Of an answer: a file with all that it imports.
const ANSWER_MAX: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ReflectionError {
    #[error("`{0}` is no address of a server: write HOST:PORT")]
    Address(String),
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
    #[error("the server has no reflection: register grpc.reflection.v1 (or v1alpha) in it")]
    Absent,
    #[error("the call failed")]
    Call(#[source] Box<Status>),
    #[error("the server does not answer")]
    Silent,
    #[error("the server refuses {asked}: {said}")]
    Refused { asked: String, said: String },
    #[error("the answer is not understood")]
    Garbled,
    #[error("more than {0} bytes of descriptors")]
    TooLarge(usize),
    #[error("more than {FILES_MAX} files, or {SERVICES_MAX} services")]
    TooMany,
}

/// A serialized `google.protobuf.FileDescriptorSet` of all services of the server at `address` (HOST:PORT, in plain text), and
/// of what they import, imports first.
///
/// # Errors
/// [`ReflectionError`]; also where the set is over `bytes_max`.
pub async fn descriptor_set(address: &str, bytes_max: usize) -> Result<Vec<u8>, ReflectionError> {
    match timeout(ALL_MAX, asked(address, bytes_max)).await {
        Ok(asked) => asked,
        Err(_) => Err(ReflectionError::Silent),
    }
}

async fn asked(address: &str, bytes_max: usize) -> Result<Vec<u8>, ReflectionError> {
    let no_address = || ReflectionError::Address(address.to_owned());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| no_address())?;
    if endpoint.uri().port().is_none() {
        return Err(no_address());
    }
    let endpoint = endpoint.connect_timeout(PATIENCE);
    let channel = endpoint.connect().await.map_err(ReflectionError::Connect)?;
    for method in METHODS {
        let mut server = match Server::open(channel.clone(), method).await {
            Err(ReflectionError::Absent) => continue,
            server => server?,
        };
        match server.files(bytes_max).await {
            Err(ReflectionError::Absent) => {}
            files => return files.map(|files| in_order(&files)),
        }
    }
    Err(ReflectionError::Absent)
}

/// A file as the server has it, and what it imports.
struct File {
    bytes: Vec<u8>,
    imports: Vec<String>,
}

/// One stream of questions.
struct Server {
    ask: mpsc::Sender<wire::ServerReflectionRequest>,
    answers: Streaming<wire::ServerReflectionResponse>,
}

impl Server {
    async fn open(channel: Channel, method: &'static str) -> Result<Self, ReflectionError> {
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(ANSWER_MAX);
        let (ask, questions) = mpsc::channel(1);
        let first = question(MessageRequest::ListServices(String::new()));
        // A server may answer the call only when something was asked.
        let _ = ask.try_send(first);
        let call = async {
            grpc.ready().await.map_err(ReflectionError::Connect)?;
            let codec = ProstCodec::default();
            let request = Request::new(ReceiverStream::new(questions));
            let path = PathAndQuery::from_static(method);
            grpc.streaming(request, path, codec).await.map_err(failed)
        };
        let answers = timeout(PATIENCE, call)
            .await
            .map_err(|_| ReflectionError::Silent)??
            .into_inner();
        Ok(Self { ask, answers })
    }

    async fn files(&mut self, bytes_max: usize) -> Result<BTreeMap<String, File>, ReflectionError> {
        let Some(MessageResponse::ListServicesResponse(listed)) =
            self.answer("its services").await?
        else {
            return Err(ReflectionError::Garbled);
        };
        if listed.service.len() > SERVICES_MAX {
            return Err(ReflectionError::TooMany);
        }
        let mut files = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for service in listed.service {
            if OF_GRPC.iter().any(|own| service.name.starts_with(own)) {
                continue;
            }
            let asked = MessageRequest::FileContainingSymbol(service.name.clone());
            match self
                .take(asked, &service.name, &mut files, &mut missing, bytes_max)
                .await
            {
                // Whoever needs it hears that it is not there.
                Ok(()) | Err(ReflectionError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        while let Some(name) = missing.pop_first() {
            let asked = MessageRequest::FileByFilename(name.clone());
            self.take(asked, &name, &mut files, &mut missing, bytes_max)
                .await?;
            if !files.contains_key(&name) {
                return Err(ReflectionError::Garbled);
            }
        }
        Ok(files)
    }

    /// Asks for files; `missing` are those that are imported and not here.
    async fn take(
        &mut self,
        asked: MessageRequest,
        name: &str,
        files: &mut BTreeMap<String, File>,
        missing: &mut BTreeSet<String>,
        bytes_max: usize,
    ) -> Result<(), ReflectionError> {
        let sent = self.ask.send(question(asked)).await;
        sent.map_err(|_| ReflectionError::Garbled)?;
        let Some(MessageResponse::FileDescriptorResponse(told)) = self.answer(name).await? else {
            return Err(ReflectionError::Garbled);
        };
        for bytes in told.file_descriptor_proto {
            let file = FileDescriptorProto::decode(bytes.as_slice())
                .map_err(|_| ReflectionError::Garbled)?;
            let imports = file.dependency;
            missing.extend(imports.iter().filter(|i| !files.contains_key(*i)).cloned());
            files
                .entry(file.name.unwrap_or_default())
                .or_insert(File { bytes, imports });
        }
        missing.retain(|name| !files.contains_key(name));
        if files.len() + missing.len() > FILES_MAX {
            return Err(ReflectionError::TooMany);
        }
        if files.values().map(|file| file.bytes.len()).sum::<usize>() > bytes_max {
            return Err(ReflectionError::TooLarge(bytes_max));
        }
        Ok(())
    }

    async fn answer(&mut self, asked: &str) -> Result<Option<MessageResponse>, ReflectionError> {
        let answer = timeout(PATIENCE, self.answers.message())
            .await
            .map_err(|_| ReflectionError::Silent)?
            .map_err(failed)?
            .ok_or(ReflectionError::Garbled)?;
        match answer.message_response {
            Some(MessageResponse::ErrorResponse(error)) => Err(ReflectionError::Refused {
                asked: asked.to_owned(),
                said: error.error_message,
            }),
            told => Ok(told),
        }
    }
}

fn question(asked: MessageRequest) -> wire::ServerReflectionRequest {
    wire::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(asked),
    }
}

fn failed(status: Status) -> ReflectionError {
    match status.code() {
        Code::Unimplemented => ReflectionError::Absent,
        _ => ReflectionError::Call(Box::new(status)),
    }
}

/// Field 1 of a FileDescriptorSet for each, what is imported before who imports it. Imports in a circle, which no compiler
/// writes, end where they began.
fn in_order(files: &BTreeMap<String, File>) -> Vec<u8> {
    let mut set = Vec::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<(&str, bool)> = files.keys().rev().map(|k| (k.as_str(), false)).collect();
    while let Some((name, ready)) = open.pop() {
        let Some(file) = files.get(name) else {
            continue;
        };
        if ready {
            set.push(0x0a);
            prost::encoding::encode_varint(file.bytes.len() as u64, &mut set);
            set.extend_from_slice(&file.bytes);
        } else if seen.insert(name) {
            open.push((name, true));
            open.extend(file.imports.iter().rev().map(|i| (i.as_str(), false)));
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn imports_stand_before_who_imports_them() {
        let file = |name: &str, imports: &[&str]| {
            let proto = FileDescriptorProto {
                name: Some(name.to_owned()),
                dependency: imports.iter().map(|i| (*i).to_owned()).collect(),
                ..Default::default()
            };
            let imports = proto.dependency.clone();
            let bytes = proto.encode_to_vec();
            (name.to_owned(), File { bytes, imports })
        };
        let files = BTreeMap::from([
            file("a", &["c", "d"]),
            file("b", &[]),
            file("c", &["b", "a"]),
            file("d", &["b"]),
        ]);
        let set = FileDescriptorSet::decode(in_order(&files).as_slice()).unwrap();
        let names: Vec<&str> = set.file.iter().map(FileDescriptorProto::name).collect();
        assert_eq!(names, ["b", "c", "d", "a"]);
    }
}
