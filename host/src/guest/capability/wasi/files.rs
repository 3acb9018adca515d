//! The functions on files and streams for sync guests. They call the functions of wasmtime-wasi. Meanwhile, the worker
//! pool counts the calling worker as waiting (R4).
//!
//! wasmtime-wasi runs these functions on the calling thread. A disk or a network mount may take any time, so a worker
//! that runs such a function must not count as a worker that computes.

use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sync::filesystem::types as files;
use wasmtime_wasi::p2::bindings::sync::io::poll::Pollable;
use wasmtime_wasi::p2::bindings::sync::io::streams;
use wasmtime_wasi::p2::{FsError, FsResult, StreamError, StreamResult};

use files::{
    Advice, Descriptor, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry,
    DirectoryEntryStream, ErrorCode, Filesize, MetadataHashValue, NewTimestamp, OpenFlags,
    PathFlags,
};
use streams::{InputStream, OutputStream};

use super::Bounded;

/// Implements a trait for `Bounded`. Each function calls the function of the same name on the value that `$of` (a
/// method of `Bounded`) provides.
macro_rules! carried {
    ($trait:path, $of:ident: $($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        impl $trait for Bounded<'_> {
            $(fn $name(&mut self, $($argument: $type),*) -> $result {
                self.$of(|it| <_ as $trait>::$name(it, $($argument),*))
            })*
        }
    };
}

carried! { files::Host, in_files:
    convert_error_code(error: FsError) -> wasmtime::Result<ErrorCode>;
    filesystem_error_code(error: Resource<streams::Error>) -> wasmtime::Result<Option<ErrorCode>>;
}

carried! { files::HostDescriptor, in_files:
    advise(fd: Resource<Descriptor>, offset: Filesize, len: Filesize, advice: Advice) -> FsResult<()>;
    sync_data(fd: Resource<Descriptor>) -> FsResult<()>;
    get_flags(fd: Resource<Descriptor>) -> FsResult<DescriptorFlags>;
    get_type(fd: Resource<Descriptor>) -> FsResult<DescriptorType>;
    set_size(fd: Resource<Descriptor>, size: Filesize) -> FsResult<()>;
    set_times(fd: Resource<Descriptor>, accessed: NewTimestamp, modified: NewTimestamp) -> FsResult<()>;
    read(fd: Resource<Descriptor>, len: Filesize, offset: Filesize) -> FsResult<(Vec<u8>, bool)>;
    write(fd: Resource<Descriptor>, bytes: Vec<u8>, offset: Filesize) -> FsResult<Filesize>;
    read_directory(fd: Resource<Descriptor>) -> FsResult<Resource<DirectoryEntryStream>>;
    sync(fd: Resource<Descriptor>) -> FsResult<()>;
    create_directory_at(fd: Resource<Descriptor>, path: String) -> FsResult<()>;
    stat(fd: Resource<Descriptor>) -> FsResult<DescriptorStat>;
    stat_at(fd: Resource<Descriptor>, flags: PathFlags, path: String) -> FsResult<DescriptorStat>;
    set_times_at(fd: Resource<Descriptor>, flags: PathFlags, path: String, accessed: NewTimestamp, modified: NewTimestamp) -> FsResult<()>;
    link_at(fd: Resource<Descriptor>, flags: PathFlags, path: String, new_fd: Resource<Descriptor>, new_path: String) -> FsResult<()>;
    open_at(fd: Resource<Descriptor>, flags: PathFlags, path: String, how: OpenFlags, access: DescriptorFlags) -> FsResult<Resource<Descriptor>>;
    drop(fd: Resource<Descriptor>) -> wasmtime::Result<()>;
    readlink_at(fd: Resource<Descriptor>, path: String) -> FsResult<String>;
    remove_directory_at(fd: Resource<Descriptor>, path: String) -> FsResult<()>;
    rename_at(fd: Resource<Descriptor>, path: String, new_fd: Resource<Descriptor>, new_path: String) -> FsResult<()>;
    symlink_at(fd: Resource<Descriptor>, path: String, new_path: String) -> FsResult<()>;
    unlink_file_at(fd: Resource<Descriptor>, path: String) -> FsResult<()>;
    read_via_stream(fd: Resource<Descriptor>, offset: Filesize) -> FsResult<Resource<InputStream>>;
    write_via_stream(fd: Resource<Descriptor>, offset: Filesize) -> FsResult<Resource<OutputStream>>;
    append_via_stream(fd: Resource<Descriptor>) -> FsResult<Resource<OutputStream>>;
    is_same_object(one: Resource<Descriptor>, other: Resource<Descriptor>) -> wasmtime::Result<bool>;
    metadata_hash(fd: Resource<Descriptor>) -> FsResult<MetadataHashValue>;
    metadata_hash_at(fd: Resource<Descriptor>, flags: PathFlags, path: String) -> FsResult<MetadataHashValue>;
}

carried! { files::HostDirectoryEntryStream, in_files:
    read_directory_entry(entries: Resource<DirectoryEntryStream>) -> FsResult<Option<DirectoryEntry>>;
    drop(entries: Resource<DirectoryEntryStream>) -> wasmtime::Result<()>;
}

carried! { streams::Host, in_streams:
    convert_stream_error(error: StreamError) -> wasmtime::Result<streams::StreamError>;
}

carried! { streams::HostInputStream, in_streams:
    read(stream: Resource<InputStream>, len: u64) -> StreamResult<Vec<u8>>;
    blocking_read(stream: Resource<InputStream>, len: u64) -> StreamResult<Vec<u8>>;
    skip(stream: Resource<InputStream>, len: u64) -> StreamResult<u64>;
    blocking_skip(stream: Resource<InputStream>, len: u64) -> StreamResult<u64>;
    subscribe(stream: Resource<InputStream>) -> wasmtime::Result<Resource<Pollable>>;
    drop(stream: Resource<InputStream>) -> wasmtime::Result<()>;
}

carried! { streams::HostOutputStream, in_streams:
    check_write(stream: Resource<OutputStream>) -> StreamResult<u64>;
    write(stream: Resource<OutputStream>, bytes: Vec<u8>) -> StreamResult<()>;
    blocking_write_and_flush(stream: Resource<OutputStream>, bytes: Vec<u8>) -> StreamResult<()>;
    blocking_write_zeroes_and_flush(stream: Resource<OutputStream>, len: u64) -> StreamResult<()>;
    subscribe(stream: Resource<OutputStream>) -> wasmtime::Result<Resource<Pollable>>;
    write_zeroes(stream: Resource<OutputStream>, len: u64) -> StreamResult<()>;
    flush(stream: Resource<OutputStream>) -> StreamResult<()>;
    blocking_flush(stream: Resource<OutputStream>) -> StreamResult<()>;
    splice(to: Resource<OutputStream>, from: Resource<InputStream>, len: u64) -> StreamResult<u64>;
    blocking_splice(to: Resource<OutputStream>, from: Resource<InputStream>, len: u64) -> StreamResult<u64>;
    drop(stream: Resource<OutputStream>) -> wasmtime::Result<()>;
}
